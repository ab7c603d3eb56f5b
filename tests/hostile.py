"""Files that nobody should send, the same for the same seed."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pillow_heif
from PIL import Image

pillow_heif.register_heif_opener()

FORMATS = {
    "JPEG": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
    "AVIF": "avif",
    "HEIF": "heic",
    "JPEG2000": "jp2",
    "PPM": "ppm",
}
MODES = {
    "PNG": ("1", "L", "P", "RGB", "RGBA", "LA", "I;16"),
    "TIFF": ("1", "L", "RGB", "RGBA", "CMYK", "F", "LAB"),
    "JPEG": ("L", "RGB", "CMYK"),
    "GIF": ("L", "P"),
}
SIZES = ((1, 1), (1, 3000), (3000, 1), (2, 2), (7, 900), (64, 48), (300, 200), (1200, 900))


def hostile(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """`count` file names and contents: whole, cut, with flipped bits, under wrong names, of extreme sizes, empty, noise."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        suffix, content = _picture(rng)
        way = i % 6
        if way == 1:
            content = content[: int(rng.integers(0, len(content)))]
        elif way == 2:
            content = _flip(content, int(rng.integers(1, 40)), rng)
        elif way == 3:
            suffix = str(rng.choice([*FORMATS.values(), "svg", "jpeg"]))
        elif way == 4:
            content = _flip(content[:64], int(rng.integers(1, 20)), rng) + content[64:]  # headers: sizes, offsets, counts
        elif way == 5:
            content = (b"", rng.bytes(int(rng.integers(1, 4000))), content[:20] + rng.bytes(500), content + content)[int(rng.integers(4))]
        yield f"{i:03d} größe.{suffix}", content


def _picture(rng: np.random.Generator) -> tuple[str, bytes]:
    container = str(rng.choice(list(FORMATS)))
    mode = str(rng.choice(MODES.get(container, ("RGB",))))
    width, height = SIZES[int(rng.integers(len(SIZES)))]
    pixels = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    image = pixels.convert("L").convert(mode) if mode in ("I;16", "F", "LA") else pixels.convert(mode)
    out = io.BytesIO()
    more = {"save_all": True, "append_images": [image] * 2} if container in ("GIF", "TIFF") and rng.random() < 0.3 else {}
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(0, 12))  # orientation; 9 to 11 do not exist
    try:
        image.save(out, container, **more, **({"exif": exif} if container in ("JPEG", "WEBP", "TIFF") else {}))
    except (OSError, ValueError):  # a format that does not take this size or mode
        out = io.BytesIO()
        pixels.save(out, "PNG")
    return FORMATS[container], out.getvalue()


def _flip(content: bytes, count: int, rng: np.random.Generator) -> bytes:
    out = bytearray(content)
    for _ in range(count if out else 0):
        out[int(rng.integers(len(out)))] ^= 1 << int(rng.integers(8))
    return bytes(out)
