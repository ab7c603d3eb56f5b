"""What a configuration refuses, and what it derives."""

from __future__ import annotations

from typing import Any

import pytest

from model.config import SidaConfig, preset


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stage": "both"}, r"stage is 'both': expected one of \('sida', 'description'\)"),
        ({"conv_type": "v9"}, "conv_type is 'v9': expected one of"),
        ({"mm_vision_select_feature": "cls"}, r"mm_vision_select_feature is 'cls': expected one of \('patch', 'cls_patch'\)"),
        ({"views": 5}, r"views is 5: expected 1 \(upright\) to 4 \(each quarter turn\)"),
        ({"image_size": 250}, "image_size is 250: expected a multiple of SAM's patch size, 16"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SidaConfig(**fields)


def test_tokens_of_an_image() -> None:
    assert SidaConfig().image_patches == 256
    assert SidaConfig(mm_vision_select_feature="cls_patch").image_patches == 257


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown preset 'huge': expected one of \['13b', '7b', 'debug', 'tiny'\]"):
        preset("huge")
