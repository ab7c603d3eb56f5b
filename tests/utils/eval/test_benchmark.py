"""The benchmark's figures on cases whose answers are known, and the whole command on a small set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from model.checkpoint import load_for_training, save_pretrained
from model.types import Label
from tests.tiny import build_tiny_lisa
from utils.data.records import Record
from utils.data.sid_mini import main as build_mini
from utils.eval.benchmark import Answers, Figures, Truth, against_real, breakdown, headline, main, read_scores


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures are tested, not the width of their intervals."""
    monkeypatch.setattr("utils.eval.bootstrap.RESAMPLES", 20)


def truth() -> Truth:
    """A real, a GAN's, a generated and two tampered pictures of 8 x 8; the upper half of the tampered ones is."""
    masks = np.zeros((5, 8, 8), bool)
    masks[3:, :4] = True
    made = [{"source": f"{i}.jpg"} for i in range(5)]
    made[1]["generator"], made[2]["generator"], made[3]["kind"], made[4]["kind"] = "esrgan-slim-x2", "flux2", "copy_move", "copy_move"
    return Truth(np.array([0, 1, 1, 2, 2]), masks, made)


def answers(judged: list[int]) -> Answers:
    """Certain verdicts; masks of the left half."""
    masks = np.full((5, 8, 8), -1, np.float16)
    masks[:, :, :4] = 1
    return Answers(np.eye(3)[judged] * 0.8 + 0.1, masks)


def test_a_missed_tampering_costs_its_mask_and_a_false_alarm_its_area() -> None:
    figures = Figures(answers([2, 1, 0, 2, 1]), truth())
    third = 1 / 3  # upper half and left half share a quarter of the picture, of three quarters
    np.testing.assert_allclose(figures.iou[3:], [third, 0])
    np.testing.assert_allclose(figures.oracle_iou[3:], [third, third])
    np.testing.assert_allclose(figures.auroc[3:], [0.5, 0.5])
    np.testing.assert_allclose(figures.area, [0.5, 0, 0, 0.5, 0])
    table = headline(figures)
    assert table["three-class accuracy"].value == 0.4
    assert table["mask IoU, end to end"].value == pytest.approx(third / 2)
    assert table["false-mask area on real"].value == 0.5
    assert table["recall of full_synthetic"].value == 0.5
    kinds = breakdown(figures, "kind")
    assert kinds["copy_move"]["pictures"] == 2
    assert kinds["copy_move"]["called fake"].value == 1.0
    assert breakdown(figures, "generator")["flux2"]["called fake"].value == 0.0


def test_against_real() -> None:
    table = against_real(np.array([0.5, 0.9, 0.1, 0.6, 0.4]), truth())
    assert {name: estimate.value for name, estimate in table.items()} == {"any fake": 0.5, "GAN re-synthesis": 1.0, "text-to-image": 0.0, "tampered": 0.5}


def test_scores_of_another_detector(tmp_path: Path) -> None:
    records = [Record(f"real/{i}.jpg", Path("x"), Label.REAL) for i in range(2)]
    (tmp_path / "s.csv").write_text("file,score\nreal/1.jpg,0.25\nreal/0.jpg,0.75\n")
    np.testing.assert_array_equal(read_scores(tmp_path / "s.csv", records), [0.75, 0.25])
    (tmp_path / "s.csv").write_text("file,score\nreal/1.jpg,0.25\n")
    with pytest.raises(ValueError, match=r"no score of 1 pictures, e\.g\. real/0\.jpg"):
        read_scores(tmp_path / "s.csv", records)


def test_the_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build_mini(["--out", str(tmp_path / "mini"), "--size", "64", "--per_class", "32"]) == 0
    save_pretrained(*load_for_training(build_tiny_lisa(tmp_path / "lisa"), "sida"), tmp_path / "sida")
    argv = ["--version", tmp_path / "sida", "--dataset_dir", tmp_path / "mini", "--fitted_on", 32, "--bits", 8, "--out", tmp_path / "out"]
    assert main(list(map(str, argv))) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "out" / "tables.md").read_text() == printed
    for row in ("| three-class accuracy |", " any fake |", "| copy_move |", "| metadata and file size, three-class accuracy |"):
        assert row in printed
    tables = json.loads((tmp_path / "out" / "tables.json").read_text())
    assert tables["pictures"] == {"real": 8, "full_synthetic": 8, "tampered": 8}
    assert tables["everything tampered everywhere"]["recall of tampered"]["value"] == 1
    assert tables["everything tampered everywhere"]["false-mask area on real"]["value"] == 1
