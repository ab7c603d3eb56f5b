"""Both sides of every benchmark give the same answers; how fast they are is not tested."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.cases import Case
from benchmarks.run import BARS, main, measure


def test_all_cases_at_the_small_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--size", "small", "--repeats", "1", "--lengths", "8", "--folder", tmp_path / "kept", "--out", tmp_path / "out"]
    assert main(list(map(str, argv))) == 0
    rows = json.loads((tmp_path / "out" / "speed.json").read_text())
    names = [row["case"] for row in rows]
    assert {name for name in BARS if "512" not in name} <= set(names)
    assert "answer of 8 tokens" in names
    assert all(row["ours"] > 0 and len(row["ratios"]) == 1 for row in rows)
    assert all(row["difference"] < 1e-4 for row in rows if "loading" not in row["case"])
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in names)


def test_memory_is_of_a_process_of_its_own(tmp_path: Path) -> None:
    argv = ["--size", "small", "--repeats", "1", "--lengths", "--only", "2 real", "--memory", "--folder", tmp_path / "kept", "--out", tmp_path / "out"]
    assert main(list(map(str, argv))) == 0
    (row,) = json.loads((tmp_path / "out" / "speed.json").read_text())
    assert all(100 < peak < 8000 for peak in row["megabytes"])


def test_different_results_are_not_compared() -> None:
    with pytest.raises(ValueError, match="wrong: results differ by 1"):
        measure(Case("wrong", lambda: 1.0, lambda: 2.0, lambda a, b: abs(a - b)), repeats=1)
