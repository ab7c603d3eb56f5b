"""A base checkpoint from nothing: what LISA-7B-v1, CLIP and SAM are to the real model, a preset with random weights is to a small one.

    python -m utils.train.scratch --out runs/tiny-base --dataset_dir data/SID_Mini
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import torch

from model.checkpoint import TOWER_FOLDER, save_pretrained
from model.config import CONV_TYPES, PRESETS, STAGES, preset
from model.sida import SIDAForCausalLM
from model.tokens import IM_END_TOKEN, IM_START_TOKEN, SEG_TOKEN, SidaTokenizer
from model.types import Label
from utils.data.conversation import answer, prompt, question
from utils.data.sid_set import read_split

LISA_TOKENS = (SEG_TOKEN, IM_START_TOKEN, IM_END_TOKEN)
LISA_LACKS = ("cls_head", "sida_fc1", "attention_layer")


def train_tokenizer(path: Path, sentences: Iterable[str], vocab_size: int) -> SidaTokenizer:
    """A Llama-style sentencepiece model (BPE, byte fallback, no normalisation) of at most `vocab_size` pieces, with LISA's tokens."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        num_threads=1,
    )
    path.write_bytes(model.getvalue())
    tokenizer = SidaTokenizer(path)
    tokenizer.add_tokens(LISA_TOKENS)
    return tokenizer


def build_base(folder: str | Path, sentences: Iterable[str], *, name: str = "tiny", seed: int = 0, vocab_size: int = 640, **overrides: Any) -> Path:
    """Write a LISA-style folder of the preset `name` with random weights, its vision tower inside, and `sam.pth` beside them.

    `sentences` is what the tokenizer is made from; `overrides` are SidaConfig fields. Deterministic for a seed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(folder / "tokenizer.model", sentences, vocab_size)
    config = preset(name, vocab_size=len(tokenizer), vision_tower=TOWER_FOLDER, **overrides)
    torch.manual_seed(seed)
    model = SIDAForCausalLM(config, cls_id=-1, seg_id=tokenizer.id_of(SEG_TOKEN))
    torch.save(model.model.visual_model.state_dict(), folder / "sam.pth")
    for family in LISA_LACKS:
        delattr(model.model, family)
    return save_pretrained(model, tokenizer, folder)


def sentences(dataset_dir: str | Path) -> list[str]:
    """What is said, about as often as it is: all prompts and answers of both stages, and the data set's descriptions."""
    asked = [prompt(conv_type, question(stage)) for conv_type in CONV_TYPES for stage in STAGES]
    said = [answer(label, stage) for label in Label for stage in STAGES]
    described = [record.description for record in read_split(dataset_dir, "train", descriptions=True) if record.description]
    return (asked + said) * (1 + len(described) // len(asked)) + described


def main(argv: Sequence[str] | None = None) -> int:
    """Build a base from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--dataset_dir", required=True, help="its descriptions teach the tokenizer")
    parser.add_argument("--preset", default="tiny", choices=sorted(PRESETS), help="sizes of the network")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    build_base(args.out, sentences(args.dataset_dir), name=args.preset, seed=args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
