"""The doctor finds what was planted, and nothing in a clean set; a harmonized copy is clean."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from model.types import Label
from utils.data.doctor import diagnose, main
from utils.data.facts import inspect, jpeg_quality
from utils.data.sid_set import read_split

SPLITS = ("train", "validation")


def draw(seed: int, size: tuple[int, int]) -> np.ndarray:
    """A smooth picture of its own."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)


def build(root: Path, suffix: dict[Label, str] | None = None, size: dict[Label, tuple[int, int]] | None = None) -> Path:
    """Sixty pictures, ten of each class and split."""
    seed = 0
    for split in SPLITS:
        (root / split / "masks").mkdir(parents=True)
        for label in Label:
            (root / split / label.title).mkdir()
            for i in range(10):
                seed += 1
                h, w = (size or {}).get(label, (64, 80))
                name = f"{split}_{label.title}_{i}"
                quality = int(np.random.default_rng(seed).integers(80, 96))
                rgb = draw(seed, (h, w))
                Image.fromarray(rgb).save(root / split / label.title / f"{name}{(suffix or {}).get(label, '.jpg')}", quality=quality)
                if label is Label.TAMPERED:
                    mask = np.zeros((h, w), np.uint8)
                    mask[h // 4 : h // 2, w // 4 : w // 2] = 255
                    cv2.imwrite(str(root / split / "masks" / f"{name}_mask.png"), mask)
    return root


def kinds(root: Path) -> dict[str, str]:
    """Serious findings: kind -> everything said."""
    out: dict[str, str] = {}
    for finding in diagnose(root)[0]:
        if finding.serious:
            out[finding.kind] = out.get(finding.kind, "") + f"{finding.message} {finding.places}"
    return out


def test_a_clean_set_has_nothing_serious(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(build(tmp_path / "set")), "--json", str(tmp_path / "out.json")]) == 0
    assert "train: 30 pictures, validation: 30 pictures" in capsys.readouterr().out
    assert not any(finding["serious"] for finding in json.loads((tmp_path / "out.json").read_text()))


def test_everything_planted_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = build(tmp_path / "set", suffix={Label.REAL: ".jpg", Label.FULL_SYNTHETIC: ".png", Label.TAMPERED: ".png"})
    train, validation = (root / split for split in SPLITS)
    shutil.copy(train / "real" / "train_real_0.jpg", validation / "real" / "copied.jpg")
    for label, i in (("full_synthetic", 1), ("tampered", 2)):  # encoded anew, and smaller
        picture = cv2.imread(str(train / label / f"train_{label}_{i}.png"))
        cv2.imwrite(str(validation / label / f"again{i}.png"), cv2.resize(picture, (60, 48), interpolation=cv2.INTER_AREA))
    cv2.imwrite(str(validation / "masks" / "again2_mask.png"), np.full((48, 60), 255, np.uint8) * (np.arange(60) < 20).astype(np.uint8))
    cv2.imwrite(str(train / "masks" / "train_tampered_3_mask.png"), np.full((10, 10), 255, np.uint8))
    cv2.imwrite(str(train / "masks" / "train_tampered_4_mask.png"), np.zeros((64, 80), np.uint8))
    (train / "masks" / "train_tampered_5_mask.png").unlink()
    broken = train / "full_synthetic" / "train_full_synthetic_9.png"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    assert main([str(root)]) == 1
    found = kinds(root)
    assert "container alone tells the class" in found["label leak"]
    assert "JPEG is 0, PNG is 1" in found["label leak"]
    assert found["copies across splits"].startswith("3 pairs")
    assert "train_real_0.jpg and" in found["copies across splits"]
    assert "train_tampered_3_mask.png is (10, 10), its picture (64, 80)" in found["mask size"]
    assert "train_tampered_4" in found["mask empty"]
    assert "train_tampered_5" in found["mask missing"]
    assert "train_full_synthetic_9.png" in found["unreadable"]
    assert "SERIOUS  label leak" in capsys.readouterr().out


def test_a_size_leak_is_put_in_words_and_harmonized_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = build(tmp_path / "set", suffix={Label.REAL: ".png"}, size={Label.TAMPERED: (96, 96)})
    found = kinds(root)
    assert "size alone tells the class" in found["label leak"]
    assert "tampered" in found["label leak"]
    assert main([str(root), "--harmonize", str(tmp_path / "copy")]) == 1
    assert "60 pictures of 64 x 64 written to" in capsys.readouterr().out
    assert kinds(tmp_path / "copy") == {}
    records = read_split(tmp_path / "copy", "train", strict=True)
    assert len(records) == 30
    assert {inspect(record.image).container for record in records} == {"JPEG"}
    with pytest.raises(ValueError, match="copy is not empty"):
        main([str(root), "--harmonize", str(tmp_path / "copy")])


def test_a_class_without_pictures_is_a_finding(tmp_path: Path) -> None:
    root = build(tmp_path / "set")
    for path in (root / "train" / "real").iterdir():
        path.unlink()
    assert "no picture in" in kinds(root)["structure"]


@pytest.mark.parametrize("quality", [1, 10, 50, 75, 95, 100])
def test_jpeg_quality(tmp_path: Path, quality: int) -> None:
    Image.fromarray(draw(0, (32, 32))).save(tmp_path / "a.jpg", quality=quality)
    with Image.open(tmp_path / "a.jpg") as image:
        assert jpeg_quality(image) == quality
    Image.fromarray(draw(0, (32, 32))).save(tmp_path / "a.png")
    assert inspect(tmp_path / "a.png").quality is None
