"""Pictures to tensors: reading, resizing, SAM's and CLIP's normalisation.

Dimensions: H x W the file, h x w the file with its longest side resized to `side`.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.types import CLIP_MEAN, CLIP_STD, SAM_MEAN, SAM_STD, Size
from utils.data.records import Stored

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

SAM_SHIFT, SAM_SCALE = (torch.tensor(values).view(3, 1, 1) for values in (SAM_MEAN, SAM_STD))
CLIP_SHIFT, CLIP_SCALE = (np.array(values, dtype=np.float32) for values in (CLIP_MEAN, CLIP_STD))
LONGEST = 64  # times the short side: a line of 1 x 60 000 pixels would become 224 x 13 million
# of a grey level; a table also costs the same when other processes keep the cores busy, torch's threads wait for each other then
GREY_VALUES = (np.arange(256) / 255.0).astype(np.float32)
SAM_VALUES = ((torch.arange(256.0)[:, None] - SAM_SHIFT.flatten()) / SAM_SCALE.flatten()).numpy()[None]  # [1, 256, 3]
CLIP_VALUES = (((np.arange(256) * (1 / 255)).astype(np.float32)[:, None] - CLIP_SHIFT) / CLIP_SCALE)[None]


def read_rgb(path: Path | str | Stored) -> np.ndarray:
    """uint8 [H, W, 3], RGB, turned as its EXIF orientation says; transparency is dropped.

    Raises FileNotFoundError when there is no such file, ValueError when it is not a picture.
    """
    return cv2.cvtColor(_read(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def read_gray(path: Path | str | Stored) -> np.ndarray:
    """uint8 [H, W]; errors as `read_rgb`."""
    return _read(path, cv2.IMREAD_GRAYSCALE)


def _read(path: Path | str | Stored, mode: int) -> np.ndarray:
    on_disk = isinstance(path, Path | str)
    if on_disk and not Path(path).is_file():
        raise FileNotFoundError(f"no picture at {path}: check the path")
    try:
        pixels = cv2.imread(str(path), mode) if on_disk else cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), mode)
    except cv2.error as error:  # e.g. a header that promises more pixels than OpenCV accepts
        raise ValueError(f"cannot read {path}: {error}") from error
    if pixels is None:
        raise ValueError(f"cannot read {path}: expected a picture ({', '.join(IMAGE_SUFFIXES)}); save it anew or remove it")
    return pixels


def resized_size(size: Size, side: int) -> Size:
    """`size` scaled to a longest side of `side`, rounded as SAM does."""
    scale = side / max(size)
    h, w = (max(1, int(x * scale + 0.5)) for x in size)
    return h, w


def resize(array: np.ndarray, size: Size, mode: str = "bilinear") -> np.ndarray:
    """uint8 [H, W] or [H, W, 3] -> `size`, antialiased as Pillow does (`mode` bilinear or bicubic) in a fifth of its time.

    Of noise, the hardest case, one value in two hundred differs from Pillow's, by one grey level, seldom two.
    """
    if size == array.shape[:2]:
        return array
    pixels = torch.from_numpy(np.atleast_3d(array)).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, size=size, mode=mode, antialias=True, align_corners=False)[0].permute(1, 2, 0).numpy()
    return resized if array.ndim == 3 else resized[..., 0]


def resize_longest_side(array: np.ndarray, side: int) -> np.ndarray:
    """uint8 [H, W] or [H, W, 3] -> the same with max(h, w) == side, bilinear."""
    return resize(array, resized_size(array.shape[:2], side))


def sam_input(rgb: np.ndarray, side: int) -> tuple[Tensor, Size]:
    """uint8 [H, W, 3] -> float32 [3, side, side] and (h, w), the part of it that is not padding."""
    resized = resize_longest_side(rgb, side)
    h, w = resized.shape[:2]
    padded = np.zeros((3, side, side), dtype=np.float32)
    padded[:, :h, :w] = cv2.LUT(resized, SAM_VALUES).transpose(2, 0, 1)
    return torch.from_numpy(padded), (h, w)


def mask_target(gray: np.ndarray, side: int) -> Tensor:
    """uint8 [H, W], white where tampered -> float32 [1, h, w] in 0..1; the edges stay soft."""
    return torch.from_numpy(cv2.LUT(resize_longest_side(gray, side), GREY_VALUES))[None]


def clip_input(rgb: np.ndarray, side: int = 224) -> Tensor:
    """uint8 [H, W, 3] -> float32 [3, side, side], what CLIPImageProcessor of openai/clip-vit-large-patch14 gives within a grey level, see `resize`.

    The short side is resized to `side` and the middle is cut out: a long picture loses its ends (beyond LONGEST, before it is resized).
    """
    height, width = rgb.shape[:2]
    if max(height, width) > LONGEST * min(height, width):
        rgb = middle(rgb, min(height, LONGEST * width), min(width, LONGEST * height))
        height, width = rgb.shape[:2]
    h, w = (int(side * x / min(height, width)) for x in (height, width))
    crop = middle(resize(rgb, (h, w), "bicubic"), side, side)
    return torch.from_numpy(cv2.LUT(crop, CLIP_VALUES).transpose(2, 0, 1).copy())


def middle(array: np.ndarray, h: int, w: int) -> np.ndarray:
    """The h x w pixels in the middle of [H, W, 3]."""
    top, left = (array.shape[0] - h) // 2, (array.shape[1] - w) // 2
    return array[top : top + h, left : left + w]
