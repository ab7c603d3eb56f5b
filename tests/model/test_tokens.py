from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.tokens import SidaTokenizer, positions_before
from tests.parity.golden import tokenizer
from tests.tiny import build_tiny_lisa


def test_positions_before() -> None:
    ids = torch.tensor([[5, 7, 9, 7], [7, 7, 1, 0]])
    assert positions_before(ids, 7).tolist() == [[True, False, True, False], [True, False, False, False]]


def test_first_token_has_no_state_before_it() -> None:
    """`roll` must not wrap the first token round to the last position."""
    assert not positions_before(torch.tensor([[7, 1, 2]]), 7).any()


def test_round_trip(tmp_path: Path) -> None:
    tokens = tokenizer("description")
    tokens.save_pretrained(tmp_path, 512)
    again = SidaTokenizer.from_pretrained(tmp_path)
    text = "[CLS] The image is tampered [SEG] because. [END]</s>"
    assert again.added == tokens.added
    assert again.encode(text) == tokens.encode(text)


def test_added_tokens_decoder_of_newer_files(tmp_path: Path) -> None:
    tokens = tokenizer()
    tokens.save_pretrained(tmp_path, 512)
    (tmp_path / "added_tokens.json").unlink()
    decoder = {str(i): {"content": token} for token, i in tokens.added.items()} | {"1": {"content": "<s>"}}
    (tmp_path / "tokenizer_config.json").write_text(__import__("json").dumps({"added_tokens_decoder": decoder}))
    assert SidaTokenizer.from_pretrained(tmp_path).added == tokens.added


def test_ids_with_a_hole_are_refused() -> None:
    path = tokenizer().model_file
    with pytest.raises(ValueError, match=r"\[SEG\] has id 700, expected 640"):
        SidaTokenizer(path, {"[SEG]": 700})


def test_missing_token_says_what_there_is(tmp_path: Path) -> None:
    base = SidaTokenizer.from_pretrained(build_tiny_lisa(tmp_path))
    with pytest.raises(ValueError, match=r"no \[CLS\].*\[SEG\].*is this a SIDA checkpoint"):
        base.id_of("[CLS]")


def test_missing_model_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="tokenizer.model"):
        SidaTokenizer.from_pretrained(tmp_path)
