"""Every sort of picture becomes the RGB that its owner sees."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from tests.hostile import hostile
from utils.data.transforms import LONGEST, clip_input, read_rgb, sam_input
from utils.infer.intake import Oversized, open_picture

RNG = np.random.default_rng(0)
PHOTO = cv2.resize(RNG.integers(0, 256, (8, 12, 3), dtype=np.uint8), (120, 80), interpolation=cv2.INTER_CUBIC)


def encode(image: Image.Image, container: str, **more: object) -> bytes:
    out = io.BytesIO()
    image.save(out, container, **more)
    return out.getvalue()


@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_a_jpeg_is_read_as_training_reads_it(tmp_path: Path, quality: int, subsampling: int) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(encode(Image.fromarray(PHOTO), "JPEG", quality=quality, subsampling=subsampling))
    np.testing.assert_array_equal(open_picture(path).rgb, read_rgb(path))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.jpg"
    path.write_bytes(encode(Image.fromarray(PHOTO), "JPEG", exif=exif))
    opened = open_picture(path)
    np.testing.assert_array_equal(opened.rgb, read_rgb(path))
    assert ("turned upright" in " ".join(opened.notes)) == (orientation > 1)


@pytest.mark.parametrize("container", ["PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF", "AVIF", "HEIF", "JPEG2000"])
def test_containers(container: str) -> None:
    more = {"lossless": True} if container == "WEBP" else {"quality": 100} if container in ("AVIF", "HEIF") else {}
    opened = open_picture(encode(Image.fromarray(PHOTO), container, **more))
    assert opened.container == container
    assert np.abs(opened.rgb.astype(int) - PHOTO).mean() < (12 if container in ("GIF", "HEIF") else 3)


def test_modes() -> None:
    image = Image.fromarray(PHOTO)
    grey = np.asarray(image.convert("L"))
    np.testing.assert_array_equal(open_picture(encode(image.convert("L"), "PNG")).rgb, np.stack([grey] * 3, axis=2))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    opened = open_picture(encode(deep, "PNG"))
    np.testing.assert_array_equal(opened.rgb[..., 0], grey)
    assert "reduced to 8 bits" in opened.notes
    assert open_picture(encode(image.convert("CMYK"), "TIFF")).notes == ("CMYK converted to RGB",)
    assert open_picture(encode(image.convert("1"), "PNG")).rgb.max() == 255
    assert np.ptp(open_picture(encode(Image.fromarray(grey.astype(np.float32)), "TIFF")).rgb) == 255


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_laid_over_white(mode: str) -> None:
    image = Image.fromarray(PHOTO).convert("L" if mode == "LA" else "RGB")
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, 40, 40))
    image.putalpha(alpha)
    opened = open_picture(encode(image.quantize() if mode == "P" else image, "PNG"))
    assert (opened.rgb[:40, :40] == 255).all()
    assert opened.notes == ("transparent parts laid over white",)


def test_an_animation_is_its_first_frame_and_says_so() -> None:
    frames = [Image.new("RGB", (20, 10), color) for color in ("red", "green", "blue")]
    opened = open_picture(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert opened.frames == 3
    assert opened.notes == ("the first of 3 frames",)
    assert tuple(opened.rgb[0, 0]) == (255, 0, 0)


def test_pixels_of_any_sort() -> None:
    tensor = torch.from_numpy(PHOTO).permute(2, 0, 1)
    for picture in (PHOTO, Image.fromarray(PHOTO), tensor, tensor.float() / 255):
        np.testing.assert_array_equal(open_picture(picture).rgb, PHOTO)
    assert open_picture(PHOTO[..., 0]).rgb.shape == PHOTO.shape
    for wrong in (PHOTO.astype(np.float32), PHOTO[..., :2], np.zeros((0, 0, 3), np.uint8), tensor.permute(1, 2, 0)):
        with pytest.raises(ValueError, match="expected uint8"):
            open_picture(wrong)


def test_the_suffix_means_nothing(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(encode(Image.fromarray(PHOTO), "JPEG"))
    assert open_picture(path).container == "JPEG"


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "empty.jpg").touch()
    whole = encode(Image.fromarray(PHOTO), "PNG")
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    for name, error, reason in (
        ("folder.jpg", ValueError, "is a folder"),
        ("empty.jpg", ValueError, "is empty"),
        ("cut.png", ValueError, "cannot read"),
        ("nowhere.jpg", FileNotFoundError, "check the path"),
    ):
        with pytest.raises(error, match=reason):
            open_picture(tmp_path / name)
    with pytest.raises(Oversized, match="0.0 megapixels, the limit is 0.005: raise it"):
        open_picture(whole, megapixels=0.005)


def test_hostile_files_are_pictures_or_value_errors() -> None:
    read = []
    for _, content in hostile(120, seed=1):
        with contextlib.suppress(ValueError):
            read.append(open_picture(content).rgb)
    assert all(rgb.dtype == np.uint8 and rgb.ndim == 3 for rgb in read)
    assert 20 < len(read) < 120


@pytest.mark.parametrize("size", [(1, 1), (1, 60_000), (60_000, 1), (3, 500)])
def test_extreme_shapes_become_inputs(size: tuple[int, int]) -> None:
    rgb = np.zeros((*size, 3), np.uint8)
    assert clip_input(rgb).shape == (3, 224, 224)
    assert sam_input(rgb, 256)[0].shape == (3, 256, 256)


def test_the_middle_of_a_long_picture_is_what_it_was() -> None:
    """Cutting a long picture before it is resized moves nothing that the encoder sees."""
    rgb = cv2.resize(RNG.integers(0, 256, (4, 300, 3), dtype=np.uint8), (10 * (LONGEST + 8), 10), interpolation=cv2.INTER_CUBIC)
    cut = rgb[:, 40:-40]
    np.testing.assert_allclose(clip_input(rgb), clip_input(cut), atol=0.05)
