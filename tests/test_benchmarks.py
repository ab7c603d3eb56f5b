"""Both sides of every benchmark give the same answers; how fast they are is not tested."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import curve, floor, many
from benchmarks.cases import Case
from benchmarks.run import BARS, main, measure
from model.types import Label
from utils.data.sid_mini import main as build_pictures

HANDFUL = Path(__file__).parents[1] / "examples" / "SID_handful"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks and pictures, made once; these smaller than the benchmark would make them."""
    kept = tmp_path_factory.mktemp("kept")
    assert build_pictures(["--out", str(kept / "pictures"), "--size", "256", "--per_class", "8", "--workers", "1"]) == 0
    return kept


def test_all_cases_at_the_small_size(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--size", "small", "--repeats", "1", "--lengths", "8", "--floors", "--folder", folder, "--out", tmp_path / "out"]
    assert main(list(map(str, argv))) == 0
    rows = json.loads((tmp_path / "out" / "speed.json").read_text())
    names = [row["case"] for row in rows]
    assert {name for name in BARS if "512" not in name} <= set(names)
    assert "answer of 8 tokens" in names
    assert all(row["ours"] > 0 and len(row["ratios"]) == 1 for row in rows)
    assert all(row["difference"] < 1e-4 for row in rows if "loading" not in row["case"])
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in names)


def test_memory_is_of_a_process_of_its_own(tmp_path: Path, folder: Path) -> None:
    argv = ["--size", "small", "--repeats", "1", "--lengths", "--only", "2 real", "--memory", "--folder", folder, "--out", tmp_path / "out"]
    assert main(list(map(str, argv))) == 0
    (row,) = json.loads((tmp_path / "out" / "speed.json").read_text())
    assert all(100 < peak < 8000 for peak in row["megabytes"])


def test_floor_counts_each_layers_weights_and_products(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8))
    call = lambda: net(torch.rand(4, 8))  # noqa: E731
    counted = floor.measure(Case("two layers", call, call, lambda a, b: 0.0, model=net))
    assert counted.operations == 2 * 2 * 4 * 8 * 16
    assert counted.weights == 4 * (8 * 16 + 16 + 16 * 8 + 8)
    assert counted.seconds(floor.Machine(flops=1e3, bandwidth=1e9)) == pytest.approx(2.048)
    q = torch.rand(1, 2, 5, 8, requires_grad=True)
    attention = lambda: F.scaled_dot_product_attention(q, q, q).sum().backward()  # noqa: E731
    assert floor.measure(Case("attention", attention, attention, lambda a, b: 0.0, model=net)).operations == (4 + 10) * 2 * 5 * 5 * 8


def test_cost_curve(tmp_path: Path, folder: Path) -> None:
    asked = [curve.Point("verdict, real", "small", 2, label=Label.REAL), curve.Point("answer", "small", tokens=4), curve.Point("verdict", "small")]
    measured = [curve.measure(point, folder) for point in asked]
    assert all(point.seconds > 0 and 100 < point.megabytes < 16000 for point in measured)
    curve.draw(measured, {"small": curve.parameters("small", folder)}, tmp_path / "curve.png")
    assert cv2.imread(str(tmp_path / "curve.png")).shape[1] > 1000


def test_different_results_are_not_compared() -> None:
    with pytest.raises(ValueError, match="wrong: results differ by 1"):
        measure(Case("wrong", lambda: 1.0, lambda: 2.0, lambda a, b: abs(a - b)), repeats=1)


def test_one_run_over_many_pictures_gives_the_records_of_single_runs(tmp_path: Path) -> None:
    many.main(["--pictures", "2", "--dataset_dir", str(HANDFUL), "--split", "test", "--precision", "fp32", "--views", "4", "--out", str(tmp_path)])
    figures = json.loads((tmp_path / "many.json").read_text())
    (run,) = figures["runs"]
    assert figures["pictures"] == 2
    assert (run["precision"], run["views"]) == ("fp32", 4)
    assert run["differences"] == []
    assert run["model_ratio"] > 0
    pictures = sorted((HANDFUL / "test").glob("[!m]*/*.jpg"))[:3]
    run = many.measure(pictures, "ck/SIDA-tiny", "fp32", 1, warm=1)  # as --one_process, whose first pictures do not count
    assert run["differences"] == []
    assert run["model_ratio"] > 0
    assert many.difference({"a": {"time": 1, "p": 0.5}}, {"a": {"time": 2, "p": 0.50001}}) == []
    assert many.difference({"a": {"p": 0.5, "label": "real"}}, {"a": {"p": 0.6, "label": "tampered"}}) == [".a.p: 0.5 against 0.6", ".a.label: real against tampered"]
