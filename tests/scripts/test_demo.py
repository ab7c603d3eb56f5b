"""What the demo shows is what the shipped checkpoint says of pictures that it has not seen in training, its mistakes included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model.types import Label
from tests.scripts.launch import ROOT
from utils.data.conversation import answer as verdict_text
from utils.data.records import Record
from utils.data.sid_set import read_split
from utils.data.transforms import read_gray
from utils.eval.explanations import class_of, said
from utils.infer.pipeline import SidaPipeline

RECORDS = read_split(ROOT / "examples" / "SID_handful", "test", descriptions=True, strict=True)
MISSED = {"tampered/windmill7_seamless_clone.jpg": Label.REAL}
LEAST_IOU = 0.8  # of the tampered pictures that are found


@pytest.fixture(scope="module")
def pipe() -> SidaPipeline:
    return SidaPipeline.from_pretrained(ROOT / "ck" / "SIDA-tiny", device="cpu")


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.id)
def test_picture(pipe: SidaPipeline, record: Record) -> None:
    result = pipe(record.image)
    assert result.label is MISSED.get(record.id, record.label)
    assert result.text == verdict_text(result.label, "sida")
    assert (result.mask is None) == (result.label is not Label.TAMPERED)
    if result.mask is not None and record.mask is not None:
        truth = read_gray(record.mask) > 127
        assert (result.mask & truth).sum() / (result.mask | truth).sum() > LEAST_IOU


def test_it_explains() -> None:
    """In the structured form, ended by itself, about the class that the head gives."""
    pipe = SidaPipeline.from_pretrained(ROOT / "ck" / "SIDA-tiny-description", device="cpu")
    for record in RECORDS:
        answer = said(pipe(record.image, decode="explain"))
        assert answer.ended
        assert answer.told.complete, answer
        assert answer.named is answer.judged is class_of(answer.told)


@pytest.mark.parametrize("name", ["SIDA-tiny", "SIDA-tiny-description"])
def test_the_checkpoint_is_small_and_names_no_machine(name: str) -> None:
    folder = ROOT / "ck" / name
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 20e6
    for path in [*folder.glob("*.json")]:
        assert str(Path.home()) not in path.read_text()
        assert '"/' not in path.read_text()


def test_masks_and_pictures_fit() -> None:
    for record in RECORDS:
        if record.mask is not None:
            mask = read_gray(record.mask)
            assert set(np.unique(mask)) == {0, 255}
