"""Masks as pictures. Images are uint8 RGB [H, W, 3], masks bool [H, W]."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

RED = (255, 0, 0)


def overlay(image: np.ndarray, mask: np.ndarray, color: tuple[int, int, int] = RED, alpha: float = 0.5) -> np.ndarray:
    """The image with `mask` tinted by `color`; uint8 [H, W, 3]."""
    if image.shape[:2] != mask.shape:
        raise ValueError(f"image is {image.shape[:2]} but mask {mask.shape}: expected the same height and width")
    out = image.copy()
    for channel, value in enumerate(color):
        tinted = (np.arange(256) * (1 - alpha) + value * alpha).astype(np.uint8)  # of each grey level: a picture in floats would take eight times its size
        out[..., channel][mask] = tinted[image[..., channel][mask]]
    return out


def write_picture(path: Path, image: np.ndarray) -> Path:
    """Write RGB [H, W, 3], or a bool mask [H, W] as 0/255, in the format of the suffix. OSError when it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = image.astype(np.uint8) * 255 if image.dtype == bool else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    if not cv2.imwrite(str(path), pixels):
        raise OSError(f"could not write {path}: is the folder writable and the disk not full?")
    return path
