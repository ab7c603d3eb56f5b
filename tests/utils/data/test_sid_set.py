from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from model.types import Label
from tests.utils.data.conftest import write_picture
from utils.data.sid_set import read_split


def test_reads_every_class_sorted_with_any_image_type(root: Path) -> None:
    records = read_split(root, "train")
    assert [record.id for record in records] == ["real/a.PNG", "real/b.jpg", "full_synthetic/s.webp", "tampered/t0.png", "tampered/t1.jpeg", "tampered/t2.bmp"]
    assert [record.label for record in records] == [Label.REAL] * 2 + [Label.FULL_SYNTHETIC] + [Label.TAMPERED] * 3
    assert [record.mask for record in records[:3]] == [None] * 3
    assert records[4].mask == root / "train" / "masks" / "t1_mask.png"
    assert all(record.image.is_file() and record.description is None for record in records)
    assert read_split(str(root), "train") == records


def test_ignores_files_that_are_not_pictures(root: Path) -> None:
    (root / "train" / "real" / "Thumbs.db").touch()
    (root / "train" / "real" / "._b.jpg").touch()
    assert len(read_split(root, "train")) == 6


def test_descriptions_go_to_the_files_they_name(root: Path) -> None:
    texts = {record.id: record.description for record in read_split(root, "train", descriptions=True) if record.description}
    assert texts == {"real/b.jpg": "Natural light.", "tampered/t0.png": "A sharp edge."}


@pytest.mark.parametrize(
    ("given", "split", "message"),
    [
        ("nowhere", "train", "no data set folder .*nowhere: expected a folder holding train/"),
        (".", "test", r"no split 'test' in .*set: it holds \['train'\]"),
        ("train", "train", "which is itself the split 'train': give its parent .*set"),
        ("train/masks", "train", "it holds no split at all"),
    ],
)
def test_a_wrong_folder_is_explained(root: Path, given: str, split: str, message: str) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        read_split(root / given, split)


def _remove(split: Path, name: str) -> None:
    shutil.rmtree(split / name)


def _empty(split: Path, name: str) -> None:
    _remove(split, name)
    (split / name).mkdir()


def _real_texts(split: Path, content: bytes) -> None:
    (split / "description" / "real_GT.json").write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "what", "error", "message"),
    [
        (_remove, "full_synthetic", FileNotFoundError, "no class folder .*full_synthetic: each split needs"),
        (_empty, "real", ValueError, r"no picture in .*real: expected at least one file ending in \.jpg"),
        (_remove, "masks", FileNotFoundError, "no folder .*masks"),
        (_empty, "masks", ValueError, "none of the 3 tampered images in .* has a mask: expected masks/t0_mask.png"),
        (_real_texts, b'{"b.jpg": ', ValueError, r"real_GT.json is not valid JSON: .*line 1 column 11"),
        (_real_texts, b'{"b.jpg": "\xff"}', ValueError, "real_GT.json is not valid JSON: .*position 11"),
        (_real_texts, b"[]", ValueError, "real_GT.json: expected an object .* 'the file itself'"),
        (_real_texts, b'{"b.jpg": 3}', ValueError, "real_GT.json: expected an object .* for 'b.jpg'"),
        (_real_texts, b'{"b.jpg": "see [SEG]"}', ValueError, r"'b.jpg' contains \[SEG\].*remove it"),
    ],
)
def test_damage_is_explained(root: Path, damage: Callable[..., None], what: str | bytes, error: type[Exception], message: str) -> None:
    damage(root / "train", what)
    with pytest.raises(error, match=message):
        read_split(root, "train", descriptions=True)


def test_tampered_without_mask_is_skipped_and_listed_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(12):
        write_picture(root / "train" / "tampered" / f"x{i:02}.png")
    with caplog.at_level(logging.WARNING):
        assert len(read_split(root, "train")) == 6
    (record,) = caplog.records
    assert "12 of 15 tampered images" in record.message
    assert "x00.png" in record.message
    assert "x09.png, ..." in record.message
    with pytest.raises(ValueError, match="x00.png.*x11.png$"):
        read_split(root, "train", strict=True)


def test_descriptions_of_unknown_files(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "train" / "description" / "real_GT.json").write_text(json.dumps({"b.jpg": "x", "gone.jpg": "y"}))
    with caplog.at_level(logging.WARNING):
        assert read_split(root, "train", descriptions=True)[1].description == "x"
    assert "1 of 2 entries" in caplog.text
    assert "gone.jpg" in caplog.text
    with pytest.raises(ValueError, match="1 of 2 entries of .*gone.jpg"):
        read_split(root, "train", descriptions=True, strict=True)


def test_absent_description_file_warns(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "train" / "description" / "tampered_GT.json").unlink()
    with caplog.at_level(logging.WARNING):
        read_split(root, "train", descriptions=True)
    assert "tampered_GT.json" in caplog.text
