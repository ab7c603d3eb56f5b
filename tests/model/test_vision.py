"""The vision tower with and without a stem of traces."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import CLIPVisionConfig, CLIPVisionModel

from model.sam import build_sam
from model.types import CLIP_MEAN, CLIP_STD
from model.vision import LOW, PHASES, RESIDUALS, STEPS, TRACES, TraceStem, VisionTower, traces

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16, "image_size": 64}
STEM = {"width": 8, "depth": 2}
MEAN, STD = ([255 * x for x in values] for values in (CLIP_MEAN, CLIP_STD))


@pytest.fixture
def levels() -> torch.Tensor:
    """Grey levels 0..255, [2, 3, 32, 48]."""
    return torch.randint(0, 256, (2, 3, 32, 48), generator=torch.Generator().manual_seed(0)).float()


def test_without_a_stem_it_is_clip() -> None:
    torch.manual_seed(0)
    clip = CLIPVisionModel(CLIPVisionConfig(**SMALL)).eval()
    tower = VisionTower(CLIPVisionConfig(**SMALL)).eval()
    tower.load_state_dict(clip.state_dict())
    pixels = torch.randn(2, 3, 64, 64)
    assert_close(tower(pixels).last_hidden_state, clip(pixels).last_hidden_state, rtol=0, atol=0)


def test_traces_are_the_dct_of_jpeg(levels: torch.Tensor) -> None:
    """Of the second block of the first row, against OpenCV's."""
    red, green, blue = levels[0, :, :8, 8:16].numpy()
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    ours = traces(levels)[0, :64, 0, 1].view(8, 8)
    assert_close(ours, torch.from_numpy(np.log1p(np.abs(cv2.dct(luminance)))), rtol=1e-4, atol=1e-3)


def test_traces_are_noise_residuals(levels: torch.Tensor) -> None:
    """Mean and root mean square of the filtered green, against OpenCV's, in a block away from the border."""
    made = traces(levels)
    assert made.shape == (2, TRACES, 4, 6)
    green = levels[0, 1].numpy()
    for i, kernel in enumerate(RESIDUALS):
        block = cv2.filter2D(green, -1, np.array(kernel, np.float32) / np.abs(kernel).max())[8:16, 16:24]
        assert made[0, 192 + i, 1, 2] == pytest.approx(np.log1p(np.abs(block).mean()), rel=1e-4)
        assert made[0, 204 + i, 1, 2] == pytest.approx(np.log1p(np.sqrt((block**2).mean())), rel=1e-4)


def test_phases_tell_an_earlier_jpeg_from_one_off_its_grid() -> None:
    """A picture whose coefficients are multiples of 7: none is off that step, until it is moved by three pixels."""
    coefficients = 7 * np.random.default_rng(0).integers(-9, 10, (6, 8, 8)).astype(np.float32)
    blocks = np.hstack([cv2.idct(block) for block in coefficients]) + 128
    levels = torch.from_numpy(blocks).expand(1, 3, 8, 48)
    shape = (len(LOW), len(STEPS), -1)
    on, off = (traces(x.contiguous(), phases=True)[0, TRACES:].view(shape)[:, STEPS.index(7)] for x in (levels, levels.roll(3, dims=-1)))
    assert on.max() < 1e-3
    assert off.mean() > 0.3
    assert traces(torch.full((1, 3, 8, 8), 100.0), phases=True)[0, TRACES:].max() < 1e-6


def test_a_flat_picture_leaves_its_mean_only() -> None:
    made = traces(torch.full((1, 3, 32, 32), 100.0))[0, :, 1, 1]
    assert made[0] == pytest.approx(np.log1p(800), rel=1e-4)
    assert made[1:].abs().max() < 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_pixels_keep_their_grey_level(dtype: torch.dtype, levels: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 240 of 255 exactly, above within one: the traces of a picture survive a model in half precision."""
    seen: list[torch.Tensor] = []
    monkeypatch.setattr("model.vision.traces", lambda x, phases: seen.append(x) or traces(x, phases))
    stem = TraceStem(**STEM, out=16, mean=MEAN, std=STD).to(dtype)
    pixels = (levels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert stem(pixels.to(dtype)).dtype == dtype
    wrong = (seen[0] - levels).abs()
    assert wrong[levels <= 230].max() == 0
    assert wrong.max() <= 1


def test_phases_come_after_the_traces(levels: torch.Tensor) -> None:
    made = traces(levels, phases=True)
    assert made.shape == (2, TRACES + PHASES, 4, 6)
    assert_close(made[:, :TRACES], traces(levels), rtol=0, atol=0)
    assert made[:, TRACES:].min() >= 0
    assert made[:, TRACES:].max() <= 1
    assert TraceStem(**STEM, out=16, mean=MEAN, std=STD, phases=True)(levels).shape == (2, 16, 2, 3)


def test_a_stem_with_echoes_adds_directions_where_copies_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by how many of a patch's four places are copies, the other everywhere by how sure it is of a copy at all; nothing before there are directions."""
    stem = TraceStem(**STEM, out=16, mean=MEAN, std=STD, phases=True, echoes=True)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    without = stem(pixels)
    logits = torch.full((1, 8, 8), -100.0)
    logits[0, 2, 4:6] = 100
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(stem.echoed, "logits", lambda levels: seen.append(levels) or logits)
    assert_close(stem(pixels), without, rtol=0, atol=0)
    here, anywhere = torch.arange(16.0), 5 - torch.arange(16.0)
    stem.echoed.directions.data = torch.stack([here, anywhere])
    added = (stem(pixels) - without)[0]
    assert_close(added[:, 1, 2], here / 2)
    assert added.abs().sum(0).count_nonzero() == 1  # the 60 largest of 64 places are none of a copy, on average
    logits.fill_(100)
    assert_close((stem(pixels) - without)[0], (here + anywhere)[:, None, None].expand(16, 4, 4))
    assert torch.equal(seen[0], seen[0].round())


def test_a_stem_starts_as_a_line_through_its_blocks(levels: torch.Tensor) -> None:
    stem = TraceStem(**STEM, out=16, mean=MEAN, std=STD)
    assert stem(levels).shape == (2, 16, 2, 3)
    x = torch.randn(1, 8, 4, 4)
    assert_close(stem.blocks[0].conv2.weight.abs().max(), torch.tensor(0.0))
    assert_close(stem.blocks[0](x), x + stem.blocks[0].conv2.bias.view(8, 1, 1))


def test_blocks_see_differences_within_a_picture_only(levels: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same everywhere: nothing is odd, so places are told apart by the picture as a whole alone, that is, not at all."""
    stem = TraceStem(**STEM, out=16, mean=MEAN, std=STD)
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(stem.inward, "forward", lambda x: seen.append(x) or torch.zeros(len(x), 8, *x.shape[2:]))
    flat = torch.full((1, 3, 64, 64), 0.5)
    flat_out = stem(flat)
    assert seen[0][:, :, 1:-1, 1:-1].std(dim=(2, 3)).max() < 1e-3  # residual filters see the border of the picture
    assert_close(flat_out[..., 1, 1], flat_out[..., 2, 2])
    stem(levels)
    assert_close(seen[1].mean(dim=(2, 3)), torch.zeros(2, TRACES), rtol=0, atol=1e-4)


def test_a_tower_with_a_stem_is_saved_and_loaded(tmp_path: Path) -> None:
    tower = VisionTower(CLIPVisionConfig(**SMALL, stem=STEM)).eval()
    tower.save_pretrained(tmp_path)
    again = VisionTower.from_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 64, 64)
    assert again.config.stem == STEM
    assert_close(again(pixels).last_hidden_state, tower(pixels).last_hidden_state, rtol=0, atol=0)


def test_sam_with_a_stem() -> None:
    sam = build_sam(embed_dim=32, depth=1, num_heads=2, global_attn_indexes=[0], image_size=64, stem=STEM).eval()
    assert sam.encode(torch.randn(2, 3, 64, 64)).shape == (2, 256, 4, 4)
    assert "image_encoder.patch_embed.proj.inward.weight" in sam.state_dict()
