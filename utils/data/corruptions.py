"""What pictures go through before anybody looks at them, as named, seeded changes: SIDA's six and three chains of social media.

Dimensions: H x W the file, h x w what a corruption makes of it; the mask follows where the geometry changes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from utils.data.sampler import Draw
from utils.data.transforms import resize

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]
FORMATS = {".jpg": cv2.IMWRITE_JPEG_QUALITY, ".webp": cv2.IMWRITE_WEBP_QUALITY}  # and the flag of their quality
POSTED = 1080  # pixels of the longest side that platforms keep
SHOT = (0.6, 0.95)  # scale at which a screen shows a picture


def compressed(rgb: np.ndarray, suffix: str, quality: int) -> np.ndarray:
    """Written with `suffix`, one of FORMATS, and read again."""
    written = cv2.imencode(suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [FORMATS[suffix], quality])[1]
    return cv2.cvtColor(cv2.imdecode(written, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def encoded(suffix: str, quality: int) -> Change:
    """Compressed once."""
    return lambda rgb, rng: compressed(rgb, suffix, quality)


def scaled(factor: float) -> Change:
    """Both sides times `factor`."""
    return lambda rgb, rng: resize(rgb, _times(rgb, factor))


def noisy(variance: float) -> Change:
    """Gaussian noise of `variance`, squared grey levels."""

    def change(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return (rgb + rng.normal(0.0, variance**0.5, rgb.shape)).round().clip(0, 255).astype(np.uint8)

    return change


def posted_twice(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """At most 1080 pixels a side, JPEG 75, two times: the second platform moves the grid of the first by cutting off an edge."""
    for cut in (0, 3):
        rgb = rgb[cut:, cut:] if min(rgb.shape[:2]) > 16 else rgb
        rgb = resize(rgb, _times(rgb, min(1.0, POSTED / max(rgb.shape[:2]))))
        rgb = compressed(rgb, ".jpg", 75)
    return rgb


def screenshot(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shown at another scale and kept without loss."""
    return resize(rgb, _times(rgb, rng.uniform(*SHOT)))


def _times(rgb: np.ndarray, factor: float) -> tuple[int, int]:
    return max(1, round(rgb.shape[0] * factor)), max(1, round(rgb.shape[1] * factor))


CHANGES: Mapping[str, Change] = {
    "JPEG 70": encoded(".jpg", 70),
    "JPEG 80": encoded(".jpg", 80),
    "resize 0.5": scaled(0.5),
    "resize 0.75": scaled(0.75),
    "noise 5": noisy(5),
    "noise 10": noisy(10),
    "posted twice": posted_twice,
    "screenshot": screenshot,
    "WebP 60": encoded(".webp", 60),
}


@dataclass(frozen=True)
class Corruption:
    """One of CHANGES as what SidaDataset calls: the same for the same seed and picture. ValueError for an unknown name."""

    name: str
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in CHANGES:
            raise ValueError(f"corruption is {self.name!r}: expected one of {', '.join(CHANGES)}")

    def __call__(self, rgb: np.ndarray, gray: np.ndarray | None, draw: Draw) -> tuple[np.ndarray, np.ndarray | None]:
        """uint8 RGB [H, W, 3] and mask [H, W], or None -> [h, w, 3] and [h, w]."""
        rng = np.random.default_rng(zlib.crc32(f"{self.seed},{draw.index}".encode()))
        changed = CHANGES[self.name](rgb, rng)
        if gray is None or changed.shape[:2] == gray.shape:
            return changed, gray
        if self.name == "posted twice":  # cut once
            gray = gray[3:, 3:] if min(gray.shape) > 16 else gray
        return changed, resize(gray, changed.shape[:2])
