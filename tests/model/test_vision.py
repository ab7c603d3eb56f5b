"""The vision tower with and without a convolutional stem."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import CLIPVisionConfig, CLIPVisionModel

from model.sam import build_sam
from model.vision import GAIN, RESIDUALS, ConvStem, VisionTower

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16, "image_size": 64}


def test_without_a_stem_it_is_clip() -> None:
    torch.manual_seed(0)
    clip = CLIPVisionModel(CLIPVisionConfig(**SMALL)).eval()
    tower = VisionTower(CLIPVisionConfig(**SMALL)).eval()
    tower.load_state_dict(clip.state_dict())
    pixels = torch.randn(2, 3, 64, 64)
    assert_close(tower(pixels).last_hidden_state, clip(pixels).last_hidden_state, rtol=0, atol=0)


def test_a_stem_halves_once_per_width() -> None:
    stem = ConvStem([4, 8], 16)
    assert stem(torch.randn(2, 3, 32, 48)).shape == (2, 16, 8, 12)


def test_it_starts_as_noise_residuals() -> None:
    """A flat or evenly rising picture has none; an impulse answers with the kernel."""
    weight = ConvStem([16, 8], 8).weight.detach()
    assert_close(weight[: 2 * len(RESIDUALS)].sum(dim=(2, 3)), torch.zeros(2 * len(RESIDUALS), 3), rtol=0, atol=1e-5)
    assert weight[11, 0].max() == -weight[11, 2].min() == GAIN * 8 / 12  # red against blue of the 5 x 5 kernel
    assert weight[10, 1, 2, 2] == -GAIN


def test_a_tower_with_a_stem_is_saved_and_loaded(tmp_path: Path) -> None:
    tower = VisionTower(CLIPVisionConfig(**SMALL, stem=[4, 8, 8, 8])).eval()
    tower.save_pretrained(tmp_path)
    again = VisionTower.from_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 64, 64)
    assert again.config.stem == [4, 8, 8, 8]
    assert_close(again(pixels).last_hidden_state, tower(pixels).last_hidden_state, rtol=0, atol=0)


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_layout_does_not_matter(channels_last: bool) -> None:
    stem, pixels = ConvStem([4, 8], 16), torch.randn(2, 3, 32, 32)
    laid = pixels.to(memory_format=torch.channels_last) if channels_last else pixels
    assert_close(stem(laid), torch.nn.Sequential.forward(stem, pixels), rtol=1e-5, atol=1e-5)


def test_sam_with_a_stem() -> None:
    sam = build_sam(embed_dim=32, depth=1, num_heads=2, global_attn_indexes=[0], image_size=64, stem=[4, 8, 8, 8]).eval()
    assert sam.encode(torch.randn(2, 3, 64, 64)).shape == (2, 256, 4, 4)
    assert "image_encoder.patch_embed.proj.0.weight" in sam.state_dict()
