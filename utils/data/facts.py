"""What a picture's file is like: container, size, quality, metadata, hashes, damage. Nothing about what the picture shows.

Dimensions: H x W the picture.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import imagehash
import numpy as np
from PIL import Image, ImageFile

from utils.data.records import Stored

# ITU-T T.81, annex K.1, row by row, as Pillow gives a file's own
LUMINANCE = np.fromstring(
    "16 11 10 16 24 40 51 61    12 12 14 19 26 58 60 55    14 13 16 24 40 57 69 56    14 17 22 29 51 87 80 62 "
    "18 22 37 56 68 109 103 77  24 35 55 64 81 104 113 92  49 64 78 87 103 121 120 101  72 92 95 98 112 100 103 99",
    dtype=np.int64,
    sep=" ",
)
THUMBNAIL = 32


@dataclass(frozen=True)
class FileFacts:
    """Of one readable picture."""

    container: str  # JPEG, PNG, ...
    width: int
    height: int
    quality: int | None  # of a JPEG, 1..100, estimated
    exif: bool
    mode: str  # Pillow's: RGB, L, P, CMYK, ...
    sha256: str
    phash: int  # 64 bits
    thumbnail: np.ndarray  # float32 [32, 32], grey levels


def inspect(stored: Stored) -> FileFacts:
    """Decode all of it. OSError when it cannot be read, is not a picture or ends too early."""
    content = stored.read_bytes()
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()  # raises for a truncated file
            gray = image.convert("L")
            return FileFacts(
                container=str(image.format),
                width=image.width,
                height=image.height,
                quality=jpeg_quality(image),
                exif=len(image.getexif()) > 0,
                mode=image.mode,
                sha256=hashlib.sha256(content).hexdigest(),
                phash=int(str(imagehash.phash(gray)), 16),
                thumbnail=np.asarray(gray.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), dtype=np.float32),
            )
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow raises for broken files
        raise OSError(f"cannot read {stored}: {error}") from error


def jpeg_quality(image: ImageFile.ImageFile) -> int | None:
    """libjpeg's quality setting whose luminance table is nearest, 1..100; None for what is not a JPEG."""
    return table_quality(getattr(image, "quantization", {}).get(0))


def table_quality(table: Sequence[int] | None) -> int | None:
    """The same of a luminance table, 64 numbers row by row; None for none."""
    if table is None or len(table) != len(LUMINANCE):
        return None
    errors = [np.abs(_table(quality) - np.array(table)).sum() for quality in range(1, 101)]
    return int(np.argmin(errors)) + 1


def _table(quality: int) -> np.ndarray:
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((LUMINANCE * scale + 50) // 100).clip(1, 255)
