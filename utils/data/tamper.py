"""Ways to tamper with a photograph, each with its exact mask.

A manipulation maps a picture, uint8 RGB [S, S, 3], and a region to new content for that region; `tamper` draws the region, blends the
content in with soft edges and makes sure that something changed. S is the picture's side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from PIL import Image

AREA = (0.02, 0.30)  # share of the picture that a region covers
VISIBLE = 3.0  # least mean change inside a region, grey levels
ATTEMPTS = 20
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.HAMMING, Image.Resampling.BOX)

Draw = Callable[[], np.ndarray]  # a fresh donor picture of the same size
Repaint = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Donors:
    """Where foreign content comes from."""

    photo: Draw
    ai: Draw
    gan: Repaint


@dataclass(frozen=True)
class Tampered:
    """A tampered picture; `mask` is bool [S, S], True where more than half of a pixel is new."""

    rgb: np.ndarray
    mask: np.ndarray


def region(side: int, rng: Generator, area: tuple[float, float] = AREA) -> np.ndarray:
    """A random connected region as bool [side, side]: a rounded blob or, one time in four, a rectangle; its share lies within `area`."""
    while True:
        wanted = np.exp(rng.uniform(*np.log(area))) * side * side
        cx, cy = rng.uniform(0.1, 0.9, 2) * side
        stretch = np.exp(rng.uniform(-0.5, 0.5))
        if rng.random() < 0.25:
            w, h = np.sqrt(wanted) * stretch, np.sqrt(wanted) / stretch
            points = cv2.boxPoints(((cx, cy), (w, h), 0 if rng.random() < 0.5 else rng.uniform(0, 90)))
        else:
            points = _blob(cx, cy, np.sqrt(wanted / np.pi), stretch, rng)
        mask = np.zeros((side, side), np.uint8)
        cv2.fillPoly(mask, [points.round().astype(np.int32)], 1)
        if area[0] <= mask.mean() <= area[1]:
            return mask.astype(bool)


def _blob(cx: float, cy: float, radius: float, stretch: float, rng: Generator) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    radii = np.ones_like(angles)
    for k in range(2, 6):
        radii += rng.uniform(0, 0.35 / k) * np.cos(k * angles + rng.uniform(0, 2 * np.pi))
    turn = rng.uniform(0, np.pi)
    x, y = radius * radii * np.cos(angles) * stretch, radius * radii * np.sin(angles) / stretch
    return np.stack([cx + x * np.cos(turn) - y * np.sin(turn), cy + x * np.sin(turn) + y * np.cos(turn)], axis=1)


def copy_move(rgb: np.ndarray, mask: np.ndarray, donors: Donors, rng: Generator) -> np.ndarray:
    """Another part of the same picture, moved, and each with even chance turned and scaled."""
    side = len(rgb)
    angle = rng.uniform(-40, 40) if rng.random() < 0.5 else 0.0
    scale = rng.uniform(0.7, 1.4) if rng.random() < 0.5 else 1.0
    way, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.5) * side
    matrix = cv2.getRotationMatrix2D((side / 2, side / 2), angle, scale)
    matrix[:, 2] += np.round([far * np.cos(way), far * np.sin(way)])
    flags = [cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4][rng.integers(3)]
    return cv2.warpAffine(rgb, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_REFLECT_101)


def splice_photo(rgb: np.ndarray, mask: np.ndarray, donors: Donors, rng: Generator) -> np.ndarray:
    """A part of another photograph."""
    return donors.photo()


def splice_ai(rgb: np.ndarray, mask: np.ndarray, donors: Donors, rng: Generator) -> np.ndarray:
    """A part of a generated picture."""
    return donors.ai()


def inpaint_telea(rgb: np.ndarray, mask: np.ndarray, donors: Donors, rng: Generator) -> np.ndarray:
    """The region filled from its border: fast marching (Telea 2004)."""
    return _inpaint(rgb, mask, cv2.INPAINT_TELEA, rng)


def inpaint_ns(rgb: np.ndarray, mask: np.ndarray, donors: Donors, rng: Generator) -> np.ndarray:
    """The region filled from its border: Navier-Stokes (Bertalmio et al. 2001)."""
    return _inpaint(rgb, mask, cv2.INPAINT_NS, rng)


def _inpaint(rgb: np.ndarray, mask: np.ndarray, how: int, rng: Generator) -> np.ndarray:
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8))  # the soft edge needs content too
    return cv2.inpaint(rgb, grown, float(rng.integers(2, 6)), how)


def gan_patch(rgb: np.ndarray, mask: np.ndarray, donors: Donors, rng: Generator) -> np.ndarray:
    """The same content painted again by a super-resolution GAN."""
    return donors.gan(rgb)


def seamless_clone(rgb: np.ndarray, mask: np.ndarray, donors: Donors, rng: Generator) -> np.ndarray:
    """A part of another photograph whose gradients are blended in (Perez et al. 2003)."""
    inside = mask.astype(np.uint8)
    inside[:2], inside[-2:], inside[:, :2], inside[:, -2:] = 0, 0, 0, 0
    x, y, w, h = cv2.boundingRect(inside)
    how = cv2.NORMAL_CLONE if rng.random() < 0.5 else cv2.MIXED_CLONE
    return cv2.seamlessClone(donors.photo(), rgb, inside * 255, (x + w // 2, y + h // 2), how)


def retouch_light(rgb: np.ndarray, mask: np.ndarray, donors: Donors, rng: Generator) -> np.ndarray:
    """Made brighter or darker, with another contrast."""
    gain = rng.uniform(0.5, 0.75) if rng.random() < 0.5 else rng.uniform(1.3, 1.8)
    return np.clip((rgb.astype(np.float32) - 128) * rng.uniform(0.8, 1.25) + 128 * gain, 0, 255).astype(np.uint8)


def retouch_blur(rgb: np.ndarray, mask: np.ndarray, donors: Donors, rng: Generator) -> np.ndarray:
    """Smoothed, as skin is."""
    if rng.random() < 0.5:
        return cv2.medianBlur(rgb, int(rng.choice([5, 7, 9])))
    return cv2.GaussianBlur(rgb, (0, 0), rng.uniform(1.5, 4))


def retouch_colour(rgb: np.ndarray, mask: np.ndarray, donors: Donors, rng: Generator) -> np.ndarray:
    """Given another hue and saturation."""
    hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV).astype(np.float32)
    hsv[..., 0] = (hsv[..., 0] + rng.uniform(20, 160)) % 180
    hsv[..., 1] = np.clip(hsv[..., 1] * rng.uniform(0.7, 1.6) + rng.uniform(10, 50), 0, 255)
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)


KINDS: dict[str, Callable[[np.ndarray, np.ndarray, Donors, Generator], np.ndarray]] = {
    kind.__name__: kind
    for kind in (
        copy_move,
        splice_photo,
        splice_ai,
        inpaint_telea,
        inpaint_ns,
        gan_patch,
        seamless_clone,
        retouch_light,
        retouch_blur,
        retouch_colour,
    )
}
SMALL = {"inpaint_telea": (0.02, 0.12), "inpaint_ns": (0.02, 0.12)}  # larger holes are smeared beyond belief


def tamper(rgb: np.ndarray, kind: str, donors: Donors, rng: Generator) -> Tampered | None:
    """`rgb` with one region changed as `kind` says; None when no attempt changed it visibly (a blank wall moved onto itself)."""
    for _ in range(ATTEMPTS):
        hard = region(len(rgb), rng, SMALL.get(kind, AREA))
        alpha = cv2.GaussianBlur(hard.astype(np.float32), (0, 0), rng.uniform(0.5, 2.0))[..., None]
        content = KINDS[kind](rgb, hard, donors, rng)
        mixed = (rgb * (1 - alpha) + content * alpha).round().astype(np.uint8)
        mask = alpha[..., 0] > 0.5
        if np.abs(mixed[mask].astype(np.int16) - rgb[mask]).mean() >= VISIBLE and AREA[0] <= mask.mean() <= AREA[1]:
            return Tampered(mixed, mask)
    return None
