"""A run's curves: the losses, and beside them what validation gave, if it was validated."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest

from utils.eval.plots import main


def test_a_panel_for_validation_when_there_was_one(tmp_path: Path) -> None:
    steps = [{"step": i, "cls": 1 / i, "mask_bce": None, "mask_dice": 0.5} for i in range(1, 81)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    assert main([str(tmp_path), "--out", str(tmp_path / "curve.png")]) == 0
    alone = cv2.imread(str(tmp_path / "curve.png")).shape
    (tmp_path / "validation.jsonl").write_text(json.dumps({"step": 40, "accuracy": 0.7, "giou": 0.5, "giou_end2end": 0.4}) + "\n")
    assert main([str(tmp_path), "--out", str(tmp_path / "curve.png")]) == 0
    both = cv2.imread(str(tmp_path / "curve.png"))
    assert both.shape == (alone[0], 2 * alone[1], 3)
    assert both[:, alone[1] :].std() > 1


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected the folder of a training run"):
        main([str(tmp_path), "--out", str(tmp_path / "curve.png")])
