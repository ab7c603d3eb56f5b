"""Brief descriptions: the same pictures as a manifest, the place and the kind of what was tampered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.types import Label
from tests.tiny import build_tiny_set
from utils.data.brief import brief, lengths, main
from utils.data.describe import MANIPULATIONS, describe
from utils.data.sid_set import read_split
from utils.data.sources import read_source


def test_place_and_kind() -> None:
    for i, (kind, done) in enumerate(MANIPULATIONS.items()):
        made = {"file": f"tampered/{i}.jpg", "kind": kind, "area": 0.1, "centre": (0.1, 0.9)}
        assert brief(str(describe(Label.TAMPERED, made))) == f"lower left, {done.type}"
    assert brief("Type: splicing. Areas: somewhere.") is None


def test_a_manifest_of_the_same_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = build_tiny_set(tmp_path / "set")
    texts = {"tampered_1.png": "Type: splicing. Areas: a small area at the upper right.", "tampered_2.png": "nothing to read"}
    (root / "train" / "description" / "tampered_GT.json").write_text(json.dumps(texts))
    assert main(["--dataset_dir", str(root), "--out", str(tmp_path / "brief" / "set.jsonl")]) == 0
    assert "1 descriptions" in capsys.readouterr().out
    assert main(["--dataset_dir", str(root), "--out", str(tmp_path / "kinds.jsonl"), "--kind"]) == 0
    assert [record.description for record in read_source(tmp_path / "kinds.jsonl", "train", descriptions=True) if record.description] == ["splicing"]
    got, want = read_source(tmp_path / "brief" / "set.jsonl", "train", descriptions=True), read_split(root, "train")
    assert [record.image.resolve() for record in got] == [record.image for record in want]
    assert [record.mask and record.mask.resolve() for record in got] == [record.mask for record in want]
    assert {record.image.name: record.description for record in got if record.description} == {"tampered_1.png": "upper right, splicing"}


def test_fewer_pictures_without_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = build_tiny_set(tmp_path / "set", per_class=4)
    words = ["--dataset_dir", str(root), "--out", str(tmp_path / "brief.jsonl")]
    assert main([*words, "--others", "2"]) == 0
    for split, others in (("train", 2), ("validation", 4)):
        labels = [record.label for record in read_source(tmp_path / "brief.jsonl", split)]
        assert {label: labels.count(label) for label in Label} == {Label.REAL: others, Label.FULL_SYNTHETIC: others, Label.TAMPERED: 4}
    with pytest.raises(SystemExit):
        main([*words, "--others", "0"])
    assert "--others 0: expected 1, all of them, or more" in capsys.readouterr().err


def test_mixed_lengths(tmp_path: Path) -> None:
    root = build_tiny_set(tmp_path / "set")
    told = str(describe(Label.TAMPERED, {"file": "tampered/1.jpg", "kind": next(iter(MANIPULATIONS)), "area": 0.1, "centre": (0.1, 0.9)}))
    whole, areas, short = lengths(told)
    assert whole == told
    assert whole.startswith(areas)
    assert areas.count(":") == 2
    assert short == brief(told)
    assert lengths("nothing to read") == ["nothing to read"]
    for split in ("train", "validation"):
        (root / split / "description" / "tampered_GT.json").write_text(json.dumps({f"tampered_{i}.png": told for i in range(9)}))
        (root / split / "description" / "real_GT.json").write_text(json.dumps({f"real_{i}.png": "Type: real." for i in range(9)}))
    assert main(["--dataset_dir", str(root), "--out", str(tmp_path / "mixed.jsonl"), "--mixed"]) == 0
    for split, forms in (("train", [whole, areas, short]), ("validation", [whole])):
        want = [(r.image.name, f) for r in read_split(root, split, descriptions=True) for f in (forms if r.label is Label.TAMPERED else [r.description])]
        got = [(r.image.name, r.description) for r in read_source(tmp_path / "mixed.jsonl", split, descriptions=True)]
        assert got == want


def test_no_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--dataset_dir", str(tmp_path / "none"), "--out", str(tmp_path / "x.jsonl")])
    assert stopped.value.code == 1
    assert "none" in capsys.readouterr().err
