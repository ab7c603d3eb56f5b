from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from tests.utils.data.conftest import write_picture
from utils.data.transforms import clip_input, mask_target, read_gray, read_rgb, resize, resize_longest_side, resized_size, sam_input

GREY_LEVEL = 1 / 255 / 0.26  # of CLIP's input


def _noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".JPEG", ".webp", ".bmp", ".tif"])
def test_reads_every_type(tmp_path: Path, suffix: str) -> None:
    path = write_picture(tmp_path / f"a{suffix}", 7, 9)
    assert read_rgb(path).shape == (7, 9, 3)
    assert read_gray(str(path)).shape == (7, 9)


def test_channels_are_rgb_and_transparency_is_dropped(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "red.png"), np.full((2, 2, 4), (0, 0, 255, 7), dtype=np.uint8))
    assert read_rgb(tmp_path / "red.png")[0, 0].tolist() == [255, 0, 0]


def test_grey_picture_becomes_three_channels(tmp_path: Path) -> None:
    rgb = read_rgb(write_picture(tmp_path / "a_mask.png", 5, 6))
    assert rgb.shape == (5, 6, 3)
    assert (rgb == rgb[..., :1]).all()


def _oversized_png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("content", [b"", b"not a picture", _oversized_png()], ids=["empty", "text", "60000 x 60000"])
def test_unreadable_file_names_the_path(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    for read in (read_rgb, read_gray):
        with pytest.raises(ValueError, match="cannot read .*bad.png: "):
            read(path)


def test_absent_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(FileNotFoundError, match="no picture at"):
            read_rgb(path)


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((480, 640), 1024, (768, 1024)),
        ((500, 333), 1024, (1024, 682)),
        ((64, 64), 256, (256, 256)),
        ((3000, 2001), 256, (256, 171)),
        ((1, 5000), 256, (1, 256)),
    ],
)
def test_resize_longest_side(size: tuple[int, int], side: int, expected: tuple[int, int]) -> None:
    assert resize_longest_side(_noise(*size), side).shape[:2] == expected
    assert resize_longest_side(_noise(*size)[..., 0], side).shape == expected


def test_sam_input_pads_with_zeros_after_normalising() -> None:
    pixels, (h, w) = sam_input(np.full((30, 60, 3), (124, 116, 104), dtype=np.uint8), 64)
    assert (h, w) == (32, 64)
    assert pixels.shape == (3, 64, 64)
    assert pixels.dtype == torch.float32
    assert (pixels[:, h:] == 0).all()
    assert torch.allclose(pixels[:, :h, :], torch.tensor([0.325 / 58.395, -0.28 / 57.12, 0.47 / 57.375]).view(3, 1, 1), rtol=1e-4)


def test_mask_target_is_soft_and_within_0_and_1() -> None:
    gray = np.zeros((100, 100), dtype=np.uint8)
    gray[:, 50:] = 255
    mask = mask_target(gray, 64)
    assert mask.shape == (1, 64, 64)
    assert mask.dtype == torch.float32
    assert mask.min() == 0
    assert mask.max() == 1
    assert ((mask > 0) & (mask < 1)).any()


@pytest.mark.parametrize("size", [(480, 640), (64, 64), (1000, 301), (17, 23)])
@pytest.mark.parametrize(("mode", "filter"), [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)])
def test_resize_is_pillows_within_a_grey_level(size: tuple[int, int], mode: str, filter: Image.Resampling) -> None:
    for rgb in (_noise(*size), _noise(*size)[..., 0].copy()):
        for side in (224, 1024):
            h, w = resized_size(size, side)
            expected = np.asarray(Image.fromarray(rgb).resize((w, h), filter))
            difference = np.abs(resize(rgb, (h, w), mode).astype(int) - expected)
            assert difference.max() <= 2
            assert difference.mean() < 0.1
            assert (difference > 0).mean() < 0.1


@pytest.mark.parametrize("size", [(224, 224), (60, 90), (90, 61), (1000, 301), (225, 700)])
def test_clip_input_is_transformers_image_processor(size: tuple[int, int]) -> None:
    """Within the resize's grey levels of the library, which is not used because importing it takes seconds."""
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    processor = module.CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    rgb = _noise(*size)
    expected = processor.preprocess(rgb, return_tensors="pt")["pixel_values"][0]
    difference = (clip_input(rgb) - expected).abs()
    assert difference.max() < 2.01 * GREY_LEVEL
    assert difference.mean() < 0.02 * GREY_LEVEL
    assert torch.equal(clip_input(rgb), expected) or size != (224, 224)
