"""Token ids and decoded text, exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.tokens import SidaTokenizer

DATA = Path(__file__).parent / "data"
CASES = json.loads((DATA / "tokenizer.json").read_text())


@pytest.fixture(scope="module")
def tokenizer() -> SidaTokenizer:
    # 644 is [END], which the original's tokenizer did not know yet when it made these: no string contains it
    return SidaTokenizer.from_pretrained(DATA)


def test_all_24_strings_are_here() -> None:
    assert len(CASES) == 24


@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case["text"][:30]))
def test_encode_and_decode(tokenizer: SidaTokenizer, case: dict[str, Any]) -> None:
    text, image_ids = case["text"], case["image_token_ids"]
    assert tokenizer.encode(text) == case["ids"]
    assert tokenizer.encode(text, bos=False) == case["ids_nospecial"]
    assert tokenizer.encode_multimodal(text, patches=1) == image_ids
    # the original decoded what it would feed the network, without the image's -200
    assert tokenizer.decode(image_ids) == case["decode_keep"]
    assert tokenizer.decode(image_ids, skip_special=True) == case["decode_skip"]
