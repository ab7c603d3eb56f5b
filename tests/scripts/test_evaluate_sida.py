"""evaluate_SIDA.py as a user runs it: alone, killed half-way and resumed, on two processes, side by side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from evaluate_SIDA import main
from model.checkpoint import load_for_training, load_pretrained, save_pretrained
from tests.scripts.launch import together
from tests.tiny import build_tiny_lisa, build_tiny_set
from utils.data.corruptions import CHANGES
from utils.data.dataset import SidaDataset, SidaProcessor
from utils.data.sid_set import read_split
from utils.eval.evaluate import evaluate
from utils.eval.runs import read_lines
from utils.infer.pipeline import SidaPipeline


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in `sida`, whose verdicts differ, and 21 pictures in `set`, one of which cannot be read."""
    root = tmp_path_factory.mktemp("evaluation")
    torch.manual_seed(1)
    model, tokenizer = load_for_training(build_tiny_lisa(root / "lisa"), "sida")
    with torch.no_grad():
        model.model.cls_head[0][3].weight.mul_(30)
    save_pretrained(model, tokenizer, root / "sida")
    build_tiny_set(root / "set", per_class=7, splits=("validation",))
    (root / "set/validation/real/real_6.png").write_bytes(b"broken")
    return root


def evaluate_into(place: Path, out: Path, *more: object) -> dict:
    argv = ["--version", place / "sida", "--dataset", place / "set", "--batch_size", 4, "--device", "cpu", "--out", out, *more]
    assert main(list(map(str, argv))) == 0
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    evaluate_into(place, place / "whole", "--robustness", "JPEG 70,resize 0.5")
    return place / "whole"


def test_figures_are_those_of_training_and_the_report_has_them(place: Path, whole: Path) -> None:
    figures = json.loads((whole / "metrics.json").read_text())
    clean = figures[""]
    model, tokenizer = load_pretrained(place / "sida")
    dataset = SidaDataset(read_split(place / "set", "validation"), SidaProcessor(tokenizer, model.config), replace_unreadable=False)
    theirs = evaluate(model, dataset, batch_size=4, device="cpu", dtype=torch.float32)
    assert clean["images"] == theirs["images"] == 20
    assert clean["unreadable"] == theirs["unreadable"]
    assert clean["detection"]["accuracy"] == pytest.approx(theirs["accuracy"])
    assert clean["detection"]["macro_f1"] == pytest.approx(theirs["macro_f1"])
    assert clean["detection"]["confusion_matrix"] == theirs["confusion_matrix"]
    for name, value in clean["legacy"].items():
        assert value == pytest.approx(theirs[name], rel=1e-6), name
    assert set(figures) == {"", "JPEG 70", "resize 0.5"}
    report = (whole / "report.md").read_text()
    for row in ("| accuracy |", "| resize 0.5 |", "| tampered against the rest |", "20 pictures, 1 unreadable"):
        assert row in report
    assert "\\begin{tabular}" in (whole / "table.tex").read_text()
    assert (whole / "table.csv").read_text().splitlines()[0] == "figure,value,low,high"
    for name in ("plots.png", "robustness.png"):
        assert cv2.imread(str(whole / name)).size > 0
    lines = read_lines(whole)
    assert len(lines) == 3 * 21
    assert sum(line.error is not None for line in lines) == 3
    told = SidaPipeline(model, tokenizer, "cpu", torch.float32).detect([line.path for line in lines if line.error is None and not line.corruption])
    for line, one in zip((line for line in lines if line.error is None and not line.corruption), told, strict=True):
        assert line.probs == pytest.approx(list(one.probs.values()), abs=1e-4)


def test_killed_half_way_and_resumed(place: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    half = (whole / "per_image.jsonl").read_text()[:6000]
    assert not half.endswith("\n")
    (out / "per_image.0.jsonl").write_text(half)
    (out / "settings.json").write_text((whole / "settings.json").read_text())
    evaluate_into(place, out, "--robustness", "JPEG 70,resize 0.5")
    assert (out / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()
    assert sorted((out / "per_image.jsonl").read_text().splitlines()) == sorted((whole / "per_image.jsonl").read_text().splitlines())
    assert not list(out.glob("per_image.*.jsonl"))


def test_two_processes_write_the_same_bytes(place: Path, whole: Path, tmp_path: Path) -> None:
    argv = ["--version", place / "sida", "--dataset", place / "set", "--batch_size", 4, "--device", "cpu", "--out", tmp_path / "out", "--robustness", "JPEG 70,resize 0.5"]
    together(2, "evaluate_SIDA", *argv)
    assert (tmp_path / "out" / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()


def test_side_by_side(place: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_into(place, tmp_path / "b", "--limit", 12, "--seed", 3)
    assert len(read_lines(tmp_path / "b")) == 12
    capsys.readouterr()
    assert main(["--compare", str(whole), str(tmp_path / "b")]) == 0
    printed = capsys.readouterr().out
    assert "| accuracy | " in printed
    assert "| +0.0000 | [+0.0000, +0.0000] | 1.000 |" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--robustness", "JPEG 7"], "corruption is 'JPEG 7': expected one of JPEG 70"),
        (["--batch_size", "0"], "batch_size is 0"),
        (["--split", "none"], "no split 'none'"),
        (["--precision", "bf16"], "holds the results of other settings .precision: 'None' there, 'bf16' here"),
    ],
)
def test_bad_flags(place: Path, whole: Path, tmp_path: Path, flags: list[str], message: str) -> None:
    out = whole if "--precision" in flags else tmp_path / "out"
    with pytest.raises(SystemExit, match=message):
        evaluate_into(place, out, *flags)


def test_other_weights_under_the_same_name_need_another_folder(place: Path, whole: Path, tmp_path: Path) -> None:
    """A checkpoint made anew must not be reported with the figures of the one before."""
    settings = json.loads((whole / "settings.json").read_text())
    assert len(settings["weights_sha256"]) == 64
    (tmp_path / "settings.json").write_text(json.dumps(settings | {"weights_sha256": "0" * 64}))
    with pytest.raises(SystemExit, match="other settings .weights_sha256: '000"):
        evaluate_into(place, tmp_path)


def test_a_temperature_belongs_to_its_views(place: Path, tmp_path: Path) -> None:
    """Both are written into the checkpoint, whose next evaluation takes them from there."""
    shutil.copytree(place / "sida", tmp_path / "sida")
    flags = ["--version", str(tmp_path / "sida"), "--dataset", str(place / "set"), "--device", "cpu"]
    assert main([*flags, "--out", str(tmp_path / "fit"), "--views", "2", "--save_temperature"]) == 0
    config = json.loads((tmp_path / "sida" / "config.json").read_text())
    assert (config["views"], config["calibrated_on"]) == (2, 20)
    assert config["cls_temperature"] != 1
    assert main([*flags, "--out", str(tmp_path / "next")]) == 0
    fit, after = ({line.id: line.logits for line in read_lines(tmp_path / name)} for name in ("fit", "next"))
    assert after == fit
    assert json.loads((tmp_path / "next" / "settings.json").read_text())["views"] == 2


@pytest.mark.parametrize("flags", [["--protocol", "paper"], ["--split", "test"]])
def test_flags_that_argparse_refuses(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(flags)
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize("name", CHANGES)
def test_corruptions_are_seeded_and_masks_follow(name: str) -> None:
    from utils.data.corruptions import Corruption
    from utils.data.sampler import Draw

    rgb = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    gray = np.zeros((40, 60), np.uint8)
    gray[10:30, 20:40] = 255
    out, mask = Corruption(name)(rgb, gray, Draw(3, 0))
    again, _ = Corruption(name)(rgb, None, Draw(3, 0))
    np.testing.assert_array_equal(out, again)
    assert out.shape[:2] == mask.shape
    assert not np.array_equal(out, rgb)
    assert 0.13 < (mask > 127).mean() < 0.21
    if name in ("noise 5", "screenshot"):
        assert not np.array_equal(Corruption(name)(rgb, None, Draw(4, 0))[0], out)
