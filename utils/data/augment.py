"""Random changes to training pictures: what happens to a picture on its way through the world, its mask following.

Dimensions: H x W the file, h x w what a crop leaves of it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.data.corruptions import FORMATS, compressed
from utils.data.sampler import Draw

AREA = (0.6, 1.0)  # share of the picture that a crop keeps
ASPECT = (0.9, 1.1)  # width / height of a crop, relative to the picture's
TAMPERED_LEFT = 0.5  # least share of the tampered area in a crop
TRIES = 10  # crops drawn before the picture is left whole
SHRINK = (0.5, 1.0)  # side to which a picture is resized before it is resized back
NOISE = 0.02  # largest standard deviation, of full scale
QUALITY = (60, 100)
AGAIN = 0.5  # chance that a compressed picture is compressed once more
BLOCK = 8  # of JPEG, pixels


@dataclass(frozen=True)
class Augmentation:
    """Turn, flip, crop, resize, noise and compression, each with its chance (0..1).

    What is drawn depends on `seed` and the draw only: not on workers, ranks or what was drawn before, so a resumed run sees the same.
    """

    seed: int
    turn: float = 0.0
    flip: float = 0.5
    crop: float = 1.0
    resize: float = 0.2
    noise: float = 0.2
    compress: float = 0.3

    def __call__(self, rgb: np.ndarray, gray: np.ndarray | None, draw: Draw) -> tuple[np.ndarray, np.ndarray | None]:
        """uint8 RGB [H, W, 3] and mask [H, W], or None, -> the same, [h, w, 3] and [h, w]. A crop keeps its pixels: all pictures are resized later."""
        key = zlib.crc32(f"{self.seed},{draw.turn},{draw.index}".encode())
        with torch.random.fork_rng(devices=[]):  # kornia draws from the global generator
            torch.default_generator.manual_seed(key)  # torch.manual_seed would also seed the GPU
            rgb, gray = self._geometry(rgb, gray)
            return self._pixels(rgb), gray

    def _geometry(self, rgb: np.ndarray, gray: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        if self.turn and _happens(self.turn):
            rgb, gray = _turned(rgb, gray)
        if _happens(self.flip):
            rgb, gray = rgb[:, ::-1], None if gray is None else gray[:, ::-1]
        if _happens(self.crop):
            window = _window(rgb, gray)
            rgb, gray = rgb[window], None if gray is None else gray[window]
        return rgb.copy(), None if gray is None else gray.copy()

    def _pixels(self, rgb: np.ndarray) -> np.ndarray:
        resized, noisy = _happens(self.resize), _happens(self.noise)
        if resized or noisy:
            pixels = torch.from_numpy(rgb).permute(2, 0, 1)[None] / 255
            pixels = _down_and_up(pixels) if resized else pixels
            pixels = _noise(pixels) if noisy else pixels
            rgb = (pixels * 255).round().clamp(0, 255).byte()[0].permute(1, 2, 0).contiguous().numpy()
        return _posted(rgb) if _happens(self.compress) else rgb


def mild(seed: int, turn: bool = True, worn: float = 0.0) -> Augmentation:
    """Turns and mirrors, if `turn`: they leave JPEG's blocks whole, and with them the traces of tampering that anything else would blur.

    `worn` (0..1) is the chance that a picture is compressed, half of it each that it is resized or given noise before.
    """
    return Augmentation(seed, turn=float(turn), flip=0.0, crop=0.0, resize=worn / 2, noise=worn / 2, compress=worn)


def _turned(rgb: np.ndarray, gray: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """By none to three quarters, mirrored or not, each of the eight ways as likely."""
    quarters, mirrored = divmod(int(torch.randint(8, ())), 2)
    rgb, gray = (None if a is None else np.rot90(a[:, ::-1] if mirrored else a, quarters) for a in (rgb, gray))
    return rgb, gray


def _happens(chance: float) -> bool:
    return bool(torch.rand(()) < chance)


def _between(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _window(rgb: np.ndarray, gray: np.ndarray | None) -> tuple[slice, slice]:
    """Rows and columns of a random crop that keeps enough of the tampered area; everything if none is found."""
    from kornia.augmentation.random_generator import ResizedCropGenerator  # 0.2 s that only --augment needs

    h, w = rgb.shape[:2]
    boxes = ResizedCropGenerator((h, w), AREA, (w / h * ASPECT[0], w / h * ASPECT[1]))
    least = 0 if gray is None else TAMPERED_LEFT * int(gray.sum(dtype=np.int64))
    for _ in range(TRIES):
        (left, top), _, (right, bottom), _ = boxes((1, 3, h, w))["src"][0].int().tolist()  # the corners belong to the box
        window = slice(top, bottom + 1), slice(left, right + 1)
        if gray is None or gray[window].sum(dtype=np.int64) >= least:
            return window
    return slice(None), slice(None)


def _down_and_up(pixels: Tensor) -> Tensor:
    """[1, 3, h, w] -> the same size. torch's own: kornia's resize is five times slower."""
    h, w = pixels.shape[-2:]
    scale = _between(*SHRINK)
    small = F.interpolate(pixels, (max(1, round(h * scale)), max(1, round(w * scale))), mode="bilinear", antialias=True)
    return F.interpolate(small, (h, w), mode="bilinear")


def _noise(pixels: Tensor) -> Tensor:
    """[1, 3, h, w] in 0..1 plus Gaussian noise; the sum may leave 0..1."""
    from kornia.augmentation import RandomGaussianNoise

    return RandomGaussianNoise(std=_between(0, NOISE), p=1.0)(pixels)


def _posted(rgb: np.ndarray) -> np.ndarray:
    """Compressed, and perhaps a second time with its blocks elsewhere, as after a cut."""
    rgb = _compressed(rgb)
    if not _happens(AGAIN):
        return rgb
    down, right = torch.randint(BLOCK, (2,)).tolist()
    return _compressed(np.pad(rgb, ((down, 0), (right, 0), (0, 0)), mode="edge"))[down:, right:].copy()


def _compressed(rgb: np.ndarray) -> np.ndarray:
    """JPEG or WebP, and read again. By the real encoders: kornia's differentiable JPEG takes 17 times as long (180 ms at 1024 px)."""
    suffix = list(FORMATS)[int(torch.randint(len(FORMATS), ()))]
    return compressed(rgb, suffix, int(torch.randint(QUALITY[0], QUALITY[1] + 1, ())))
