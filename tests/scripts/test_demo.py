"""The shipped checkpoint answers right on the pictures it was overfitted to, from the class to the mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.scripts.launch import ROOT
from utils.data.sid_set import read_split
from utils.data.transforms import read_gray
from utils.infer.pipeline import SidaPipeline

RECORDS = read_split(ROOT / "examples" / "SID_handful", "train", descriptions=True, strict=True)


@pytest.fixture(scope="module")
def pipe() -> SidaPipeline:
    return SidaPipeline.from_pretrained(ROOT / "ck" / "SIDA-tiny", device="cpu")


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.id)
def test_picture(pipe: SidaPipeline, record: object) -> None:
    result = pipe(record.image)
    assert result.label is record.label
    assert result.text.startswith(f"[CLS] The image is {record.label.title.replace('_', ' ')}")
    if record.mask is None:
        assert result.mask is None
        return
    truth = read_gray(record.mask) > 0
    assert (result.mask & truth).sum() / (result.mask | truth).sum() > 0.9


def test_the_checkpoint_is_small_and_names_no_machine() -> None:
    folder = ROOT / "ck" / "SIDA-tiny"
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 20e6
    for path in [*folder.glob("*.json")]:
        assert str(Path.home()) not in path.read_text()
        assert '"/' not in path.read_text()


def test_masks_and_pictures_fit() -> None:
    for record in RECORDS:
        if record.mask is not None:
            mask = read_gray(record.mask)
            assert set(np.unique(mask)) == {0, 255}
