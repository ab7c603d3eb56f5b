"""Special tokens and the tokenizer.

The published checkpoints were trained with transformers 4.31's slow LlamaTokenizer. Its ids around added
tokens cannot be had from later versions, so this is sentencepiece plus that version's rules, and nothing else:
text next to an added token loses its white space; every piece in between is tokenized on its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from torch import Tensor

CLS_TOKEN = "[CLS]"
SEG_TOKEN = "[SEG]"
END_TOKEN = "[END]"
IM_START_TOKEN = "<im_start>"
IM_END_TOKEN = "<im_end>"
IMAGE_TOKEN = "<image>"
IMAGE_TOKEN_ID = -200  # stands for one CLIP patch; never looked up in the embedding table
IGNORE_INDEX = -100
PAD_TOKEN_ID = 0  # Llama has no padding token: <unk> serves
BOS, EOS, UNK = "<s>", "</s>", "<unk>"


def positions_before(input_ids: Tensor, token_id: int) -> Tensor:
    """bool [B, T]: True where the *next* token is `token_id`, i.e. at the state that predicts it."""
    mask = (input_ids == token_id).roll(-1, dims=1)
    mask[:, -1] = False
    return mask


class SidaTokenizer:
    """Llama's sentencepiece model with added tokens.

    `added` maps token -> id, ids counting up from the sentencepiece vocabulary's size.
    """

    def __init__(self, model_file: str | Path, added: dict[str, int] | None = None) -> None:
        self.model_file = Path(model_file)
        if not self.model_file.is_file():
            raise FileNotFoundError(f"no sentencepiece model at {self.model_file}: copy tokenizer.model of the base model there")
        self._sp = sentencepiece.SentencePieceProcessor(model_file=str(self.model_file))
        self.added: dict[str, int] = {}
        self.add_tokens(dict(sorted((added or {}).items(), key=lambda item: item[1])))

    def add_tokens(self, tokens: Iterable[str]) -> int:
        """Append unknown `tokens` in order; returns how many were new. A mapping's ids must continue the vocabulary."""
        before = len(self)
        for token in tokens:
            if token not in self.added:
                self.added[token] = len(self)
            if isinstance(tokens, dict) and self.added[token] != tokens[token]:
                raise ValueError(f"{self.model_file.parent}: added token {token} has id {tokens[token]}, expected {self.added[token]}")
        specials = sorted({BOS, EOS, UNK, *self.added}, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, specials)) + ")")
        self._name = {index: token for token, index in self.added.items()}
        return len(self) - before

    def __len__(self) -> int:
        return self._sp.get_piece_size() + len(self.added)

    def id_of(self, token: str) -> int:
        """The id of an added token."""
        if token not in self.added:
            found = sorted(self.added) or "no added tokens"
            raise ValueError(f"the tokenizer at {self.model_file.parent} has no {token}: it has {found}; is this a SIDA checkpoint?")
        return self.added[token]

    @property
    def bos_id(self) -> int:
        return self._sp.bos_id()

    @property
    def eos_id(self) -> int:
        return self._sp.eos_id()

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Token ids of `text`, `<s>` first unless `bos` is False. `<image>` is not known here: see `encode_multimodal`."""
        ids = [self.bos_id] if bos else []
        chunks = self._split.split(text)
        for i, chunk in enumerate(chunks):
            if i % 2:
                ids.append(self.added[chunk] if chunk in self.added else self._sp.piece_to_id(chunk))
                continue
            if i > 0 and chunks[i - 1] in self.added:
                chunk = chunk.lstrip()
            if i + 1 < len(chunks) and chunks[i + 1] in self.added:
                chunk = chunk.rstrip()
            ids.extend(self._sp.encode(chunk))
        return ids

    def encode_multimodal(self, text: str, patches: int) -> list[int]:
        """Like `encode`, each `<image>` becoming `patches` times IMAGE_TOKEN_ID (the text around it is tokenized apart)."""
        first, *rest = text.split(IMAGE_TOKEN)
        ids = self.encode(first)
        for chunk in rest:
            ids += [IMAGE_TOKEN_ID] * patches + self.encode(chunk, bos=False)
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Text of `ids`; image placeholders are dropped, added tokens are set apart by one space."""
        parts: list[str] = []
        run: list[int] = []
        for index in ids:
            if index == IMAGE_TOKEN_ID:
                continue
            if index in self._name:
                parts += [self._decode_run(run, skip_special), self._name[index]]
                run = []
            else:
                run.append(index)
        parts.append(self._decode_run(run, skip_special))
        return " ".join(part for part in parts if part)

    def _decode_run(self, ids: list[int], skip_special: bool) -> str:
        text, plain, after_special = "", [], False
        for i, index in enumerate(ids):
            if index not in (self.bos_id, self.eos_id, self._sp.unk_id()):
                plain.append(index)
                after_special = False
                continue
            if skip_special:
                continue
            gap = "" if after_special or i == 0 else " "
            text += gap + self._sp.decode(plain) + self._sp.id_to_piece(index)
            plain, after_special = [], True
        return text + self._sp.decode(plain)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> SidaTokenizer:
        """Load `tokenizer.model` and `added_tokens.json` (or tokenizer_config.json's added_tokens_decoder) of a checkpoint."""
        folder = Path(folder)
        added: dict[str, int] = {}
        if (folder / "added_tokens.json").is_file():
            added = json.loads((folder / "added_tokens.json").read_text())
        elif (folder / "tokenizer_config.json").is_file():
            decoder = json.loads((folder / "tokenizer_config.json").read_text()).get("added_tokens_decoder", {})
            added = {entry["content"]: int(index) for index, entry in decoder.items() if entry["content"] not in (BOS, EOS, UNK)}
        return cls(folder / "tokenizer.model", added)

    def save_pretrained(self, folder: str | Path, max_length: int) -> None:
        """Write the files that transformers' LlamaTokenizer reads too."""
        folder = Path(folder)
        plain = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        marks = {name: {"content": token, **plain} for name, token in (("bos_token", BOS), ("eos_token", EOS), ("unk_token", UNK))}
        config = {"tokenizer_class": "LlamaTokenizer", "model_max_length": max_length, "padding_side": "right", "legacy": True}
        config |= {"add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False, "pad_token": UNK}
        (folder / "tokenizer.model").write_bytes(self.model_file.read_bytes())
        for name, content in (
            ("added_tokens.json", self.added),
            ("special_tokens_map.json", marks | {"pad_token": UNK}),
            ("tokenizer_config.json", config | {k: {"__type": "AddedToken", **v} for k, v in marks.items()}),
        ):
            (folder / name).write_text(json.dumps(content, indent=2) + "\n")
