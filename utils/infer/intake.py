"""Any picture that people have, as the RGB that they see: turned upright, 8 bits, nothing transparent, one frame.

Dimensions: H x W the upright picture.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pillow_heif
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

Image.init()
pillow_heif.register_heif_opener()

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")  # none that runs another program
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".heic", ".heif", ".gif", ".bmp", ".dib", ".tif", ".tiff")
SUFFIXES += (".mpo", ".jp2", ".ppm", ".pgm", ".pnm")
MEGAPIXELS = 100.0
MEGABYTES = 512
# what Pillow's decoders raise for files that are not what they say
BROKEN = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, AttributeError, struct.error, zlib.error)
BROKEN += (MemoryError, RuntimeError, Image.DecompressionBombError)

Picture = str | Path | bytes | Image.Image | np.ndarray | Tensor
"""A file, its content, or pixels: RGB or grey uint8 [H, W, 3] or [H, W], a tensor [3, H, W] uint8 or float in 0..1."""


@dataclass(frozen=True)
class Opened:
    """A picture as it is seen, and what was done to make it so."""

    rgb: np.ndarray  # uint8 [H, W, 3]
    name: str = "image"  # of the file, or what stands for one
    content: bytes | None = None  # the file
    container: str | None = None  # JPEG, PNG, ...
    mode: str | None = None  # Pillow's: RGB, L, P, CMYK, I;16, ...
    frames: int = 1
    notes: tuple[str, ...] = ()  # e.g. "transparent parts laid over white"
    quantization: tuple[int, ...] | None = None  # a JPEG's luminance table
    exif: Image.Exif | None = None

    @property
    def megapixels(self) -> float:
        """Of the upright picture."""
        return self.rgb.shape[0] * self.rgb.shape[1] / 1e6


def open_picture(picture: Picture | Opened, megapixels: float = MEGAPIXELS) -> Opened:
    """Decode `picture`, of at most so many megapixels.

    FileNotFoundError when there is no such file, ValueError when it is too large, broken, or not a picture.
    """
    if isinstance(picture, Opened):
        return picture
    if isinstance(picture, np.ndarray | Tensor):
        return Opened(_array(picture))
    if isinstance(picture, Image.Image):
        return _decode(picture, "image", None)
    name, content = ("image", picture) if isinstance(picture, bytes) else (str(picture), read_file(Path(picture)))
    if not content:
        raise ValueError(f"{name} is empty: expected a picture")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            found = image.width * image.height / 1e6
            if found > megapixels:
                raise Oversized(f"{name} has {found:.1f} megapixels, the limit is {megapixels:g}: raise it (--max_megapixels) or shrink the picture")
            return _decode(image, name, content)
    except Oversized:
        raise
    except Image.DecompressionBombError as error:
        raise Oversized(f"{name} is larger than Pillow opens: {error}; see `allow`") from error
    except BROKEN as error:
        detail = str(error).replace("cannot identify image file", "not a picture:").split("<_io")[0].strip(" :")
        raise ValueError(f"cannot read {name}: {detail or type(error).__name__}") from error


class Oversized(ValueError):
    """More pixels or bytes than allowed."""


def allow(megapixels: float) -> None:
    """Let Pillow open pictures of so many megapixels, for the whole program: it refuses twice its own limit, and warns of less."""
    Image.MAX_IMAGE_PIXELS = int(megapixels * 1e6)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def read_file(path: Path) -> bytes:
    """Its content. FileNotFoundError when there is no such file, ValueError when it is a folder or larger than MEGABYTES."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: expected a picture")
    if not path.is_file():
        raise FileNotFoundError(f"no picture at {path}: check the path")
    size = path.stat().st_size
    if size > MEGABYTES * 2**20:
        raise Oversized(f"{path} has {size / 2**20:.0f} MB, the limit is {MEGABYTES}: save it smaller")
    return path.read_bytes()


def _decode(image: Image.Image, name: str, content: bytes | None) -> Opened:
    frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1  # a phone's second picture is a thumbnail or a depth map
    notes = [f"the first of {frames} frames"] if frames > 1 else []
    mode, exif, tables = image.mode, image.getexif(), getattr(image, "quantization", None) or {}
    container = image.format
    image.load()
    if exif.get(ExifTags.Base.Orientation, 1) not in (0, 1):
        image = ImageOps.exif_transpose(image)
        notes.append("turned upright as its EXIF orientation says")
    rgb, done = _rgb(image)
    return Opened(rgb, name, content, container, mode, frames, (*notes, *done), tuple(tables[0]) if 0 in tables else None, exif)


def _rgb(image: Image.Image) -> tuple[np.ndarray, list[str]]:
    """uint8 [H, W, 3], and what it took."""
    if image.mode.startswith("I") or image.mode == "F":
        return _deep(np.asarray(image))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if rgba.getextrema()[3][0] < 255:
            white = Image.new("RGB", image.size, (255, 255, 255))
            white.paste(rgba, mask=rgba.getchannel("A"))
            return np.array(white), ["transparent parts laid over white"]
        image = rgba
    return np.array(image.convert("RGB")), [f"{image.mode} converted to RGB"] if image.mode in ("CMYK", "LAB", "YCbCr", "HSV") else []


def _deep(pixels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """[H, W] of more than 8 bits -> uint8 [H, W, 3]."""
    if pixels.dtype.kind == "f":
        low, high = np.nanmin(pixels), np.nanmax(pixels)
        pixels = np.nan_to_num((pixels - low) / max(high - low, 1e-12)) * 255
    elif pixels.dtype == np.uint16 or pixels.max() > 255:
        pixels = pixels.clip(0, 65535) >> 8
    grey = pixels.clip(0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2), ["reduced to 8 bits"]


def _array(pixels: np.ndarray | Tensor) -> np.ndarray:
    """uint8 [H, W, 3] of RGB or grey pixels. ValueError for other shapes and types."""
    shape, kind = tuple(pixels.shape), pixels.dtype
    if isinstance(pixels, Tensor):
        pixels = pixels.detach().cpu()
        if pixels.is_floating_point():
            pixels = (pixels.float() * 255).round().clamp(0, 255).to(torch.uint8)
        pixels = (pixels.permute(1, 2, 0) if pixels.ndim == 3 else pixels).numpy()
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise ValueError(f"pixels are {kind} {list(shape)}: expected uint8 [H, W, 3] (an array) or uint8 or float [3, H, W] (a tensor), RGB")
    return np.ascontiguousarray(pixels)
