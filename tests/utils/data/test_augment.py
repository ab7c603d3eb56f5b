"""Augmentation: the mask goes where its picture goes, and a seed and a draw decide everything."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from utils.data.augment import AREA, NOISE, Augmentation, mild
from utils.data.sampler import Draw

NEVER = {"flip": 0.0, "crop": 0.0, "resize": 0.0, "noise": 0.0, "compress": 0.0}
SHAPES = [(120, 90), (64, 64), (61, 200)]


def tampered(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A dark ramp with a bright corner piece, and the piece as its mask."""
    gray = np.zeros((height, width), np.uint8)
    gray[height // 8 : height // 2, width // 8 : width // 3] = 255
    rgb = np.broadcast_to(np.linspace(0, 80, width, dtype=np.uint8)[None, :, None], (height, width, 3)).copy()
    rgb[gray > 0] = 240
    return rgb, gray


def only(**chances: float) -> Augmentation:
    return Augmentation(0, **(NEVER | chances))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mask_follows(shape: tuple[int, int]) -> None:
    rgb, gray = tampered(*shape)
    for index in range(40):
        picture, mask = Augmentation(1)(rgb, gray, Draw(index, 0))
        assert picture.dtype == mask.dtype == np.uint8
        assert picture.shape == (*mask.shape, 3)
        assert picture.flags.c_contiguous
        assert set(np.unique(mask)) == {0, 255}
        assert (mask > 0).sum() >= 0.5 * (gray > 0).sum()
        bright = picture.mean(axis=2) > 160
        assert (bright & (mask > 0)).sum() / (bright | (mask > 0)).sum() > 0.9


@pytest.mark.parametrize("shape", SHAPES)
def test_a_crop_keeps_most(shape: tuple[int, int]) -> None:
    rgb, _ = tampered(*shape)
    kept = [picture.shape[0] * picture.shape[1] / (shape[0] * shape[1]) for picture in (only(crop=1)(rgb, None, Draw(i, 0))[0] for i in range(40))]
    assert min(kept) > AREA[0] - 0.02
    assert min(kept) < 0.75
    assert max(kept) > 0.9


def test_a_crop_that_would_lose_the_tampered_area_is_left_out() -> None:
    rgb, gray = tampered(100, 100)
    gray[:] = 0
    gray[:4] = gray[-4:] = gray[:, :4] = gray[:, -4:] = 255  # a frame: any small crop loses most of it
    sizes = [only(crop=1)(rgb, gray, Draw(i, 0))[1] for i in range(20)]
    assert all((mask > 0).sum() >= 0.5 * (gray > 0).sum() for mask in sizes)


def test_turning_moves_whole_blocks_in_eight_ways() -> None:
    rgb, gray = tampered(64, 48)
    seen = set()
    for index in range(80):
        picture, mask = mild(0)(rgb, gray, Draw(index, 0))
        assert picture.flags.c_contiguous
        np.testing.assert_array_equal(picture.mean(axis=2) > 160, mask > 0)
        seen.add((mask.shape, mask.tobytes()))
    assert len(seen) == 8
    assert mild(0)(rgb, None, Draw(0, 0))[1] is None


@pytest.mark.parametrize("turn", [True, False])
def test_a_worn_picture_is_turned_alike_and_compressed_once_more(turn: bool) -> None:
    rgb, gray = tampered(64, 48)
    for index in range(8):
        (plain, mask), (worn, same) = (mild(0, turn, chance)(rgb, gray, Draw(index, 0)) for chance in (0.0, 1.0))
        np.testing.assert_array_equal(mask, same)
        assert worn.shape == plain.shape
        assert not np.array_equal(worn, plain)
        np.testing.assert_allclose(worn.mean(axis=(0, 1)), plain.mean(axis=(0, 1)), atol=4)


def test_nothing_happens_at_chance_0() -> None:
    rgb, gray = tampered(50, 70)
    picture, mask = only()(rgb, gray, Draw(0, 0))
    assert np.array_equal(picture, rgb)
    assert np.array_equal(mask, gray)


def test_no_mask_stays_none() -> None:
    rgb, _ = tampered(50, 70)
    assert Augmentation(0)(rgb, None, Draw(0, 0))[1] is None


def test_the_smallest_picture() -> None:
    for index in range(20):
        picture, mask = only(flip=1, crop=1, resize=1, noise=1, compress=1)(np.full((1, 1, 3), 9, np.uint8), np.full((1, 1), 255, np.uint8), Draw(index, 0))
        assert (picture.shape, mask.shape) == ((1, 1, 3), (1, 1))


def test_flip() -> None:
    rgb, gray = tampered(50, 70)
    picture, mask = only(flip=1)(rgb, gray, Draw(0, 0))
    assert np.array_equal(picture, rgb[:, ::-1])
    assert np.array_equal(mask, gray[:, ::-1])


@pytest.mark.parametrize("step", ["resize", "noise", "compress"])
def test_pixels_change_a_little_and_the_mask_does_not(step: str) -> None:
    rgb = np.random.default_rng(0).integers(60, 190, (12, 16, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    gray = tampered(96, 128)[1]
    picture, mask = only(**{step: 1})(rgb, gray, Draw(0, 0))
    assert picture.shape == rgb.shape
    assert np.array_equal(mask, gray)
    assert 0 < np.abs(picture.astype(int) - rgb).mean() < 10


def test_noise_is_small() -> None:
    flat = np.full((64, 64, 3), 128, np.uint8)
    spread = [only(noise=1)(flat, None, Draw(i, 0))[0].std() for i in range(20)]
    assert max(spread) < 255 * NOISE * 1.1
    assert max(spread) > 1


def border(rgb: np.ndarray) -> int:
    """After which of eight columns the largest steps between neighbours are."""
    steps = np.abs(np.diff(rgb.astype(float), axis=1)).mean(axis=(0, 2))
    return int(np.argmax([steps[column::8].mean() for column in range(8)]))


def test_compression_leaves_its_grid_or_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps between neighbours are larger across the borders of JPEG's 8 x 8 blocks than inside; compressed again, they are so elsewhere."""
    smooth = np.random.default_rng(0).normal(128, 12, (256, 256, 3)).clip(0, 255).astype(np.uint8)
    monkeypatch.setattr("utils.data.augment.FORMATS", [".jpg"])
    monkeypatch.setattr("utils.data.augment.QUALITY", (60, 60))  # better leaves none
    for again, borders in ((0.0, {7}), (1.0, set(range(8)))):
        monkeypatch.setattr("utils.data.augment.AGAIN", again)
        found = {border(only(compress=1)(smooth, None, Draw(i, 0))[0]) for i in range(40)}
        assert found == borders


def test_both_formats_are_used() -> None:
    rgb = np.random.default_rng(0).integers(60, 190, (12, 16, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    used = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cv2, "imencode", lambda suffix, *rest, write=cv2.imencode: used.append(suffix) or write(suffix, *rest))
        for index in range(60):
            only(compress=1)(rgb, None, Draw(index, 0))
    assert 60 < len(used) < 120  # once or twice each
    assert 0.3 < used.count(".webp") / len(used) < 0.7


def test_seed_and_draw_decide_and_nothing_else() -> None:
    rgb, gray = tampered(80, 60)
    first = Augmentation(7)(rgb, gray, Draw(3, 1))
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = Augmentation(7)(rgb, gray, Draw(3, 1))
    assert torch.equal(torch.get_rng_state(), before)  # dropout goes on as if nothing had been drawn
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    for seed, draw in ((8, Draw(3, 1)), (7, Draw(4, 1)), (7, Draw(3, 2))):
        assert not np.array_equal(Augmentation(seed)(rgb, gray, draw)[0], first[0])
