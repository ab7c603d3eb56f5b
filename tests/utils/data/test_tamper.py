"""Manipulations change what their mask says and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from utils.data.resynthesis import Upscaler
from utils.data.sid_mini import PACK
from utils.data.tamper import AREA, KINDS, VISIBLE, Donors, region, tamper


def picture(seed: int, side: int = 128) -> np.ndarray:
    """Smooth colour with texture, uint8 [side, side, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    waves = [128 + 60 * np.sin(rng.uniform(2, 12) * x + rng.uniform(2, 12) * y + rng.uniform(0, 6)) for _ in range(3)]
    return np.clip(np.stack(waves, axis=-1) + rng.normal(0, 12, (side, side, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def donors() -> Donors:
    net = Upscaler(PACK / "nets" / "esrgan-slim-x2.safetensors")
    return Donors(lambda: picture(7), lambda: picture(8), lambda rgb: net.repaint(rgb, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_manipulation_changes_its_region_and_leaves_the_rest(kind: str, donors: Donors) -> None:
    for seed in range(4):
        rgb = picture(seed)
        done = tamper(rgb, kind, donors, np.random.default_rng(seed))
        change = np.abs(done.rgb.astype(int) - rgb).mean(axis=-1)
        assert change[done.mask].mean() >= VISIBLE
        assert AREA[0] <= done.mask.mean() <= AREA[1]
        far = ~dilated(done.mask, 12)
        assert change[far].max() == 0
        assert done.rgb.dtype == np.uint8
        assert done.rgb.shape == rgb.shape


def dilated(mask: np.ndarray, by: int) -> np.ndarray:
    import cv2

    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * by + 1, 2 * by + 1), np.uint8)).astype(bool)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_tampers_the_same_way(kind: str, donors: Donors) -> None:
    first, second = (tamper(picture(1), kind, donors, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first.rgb, second.rgb)
    np.testing.assert_array_equal(first.mask, second.mask)


def test_a_blank_picture_resists_copying() -> None:
    blank = np.full((96, 96, 3), 90, np.uint8)
    assert tamper(blank, "copy_move", Donors(None, None, None), np.random.default_rng(0)) is None


def test_regions_keep_to_their_area_and_differ() -> None:
    rng = np.random.default_rng(0)
    regions = [region(100, rng, (0.05, 0.1)) for _ in range(20)]
    assert all(0.05 <= mask.mean() <= 0.1 for mask in regions)
    assert len({mask.tobytes() for mask in regions}) == len(regions)


def test_an_upscaler_paints_the_same_picture_larger() -> None:
    import cv2

    for path in sorted((PACK / "nets").iterdir()):
        net = Upscaler(path)
        small = cv2.GaussianBlur(picture(3, 48), (0, 0), 1.5)
        large = net(small)
        assert large.shape == (48 * net.scale, 48 * net.scale, 3)
        again = cv2.resize(large, (48, 48), interpolation=cv2.INTER_AREA)
        assert np.abs(again.astype(int) - small).mean() < 6  # content is kept ...
        assert np.abs(net.repaint(picture(3, 50), 2).astype(int) - picture(3, 50)).mean() > 2  # ... traces are not
        assert net.repaint(picture(3, 50), 2).shape == (50, 50, 3)
