"""SID_Mini: deterministic, split by source, exact masks, and no shortcut to the classes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from model.types import Label
from utils.data.describe import position
from utils.data.sid_mini import PACK, SPLITS, TEST_ONLY, find, gather, main, plan_sources, share_out
from utils.data.sid_set import read_split
from utils.eval.audit import metadata_accuracy, thumbnail_auroc

SMALL = ["--size", "128", "--per_class", "20"]


def manifest(root: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (root / split / "manifest.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "mini"
    assert main(["--out", str(root), *SMALL]) == 0
    return root


def digest(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(root.rglob("*")) if path.is_file()}


def test_the_same_seed_writes_the_same_bytes(mini: Path, tmp_path: Path) -> None:
    main(["--out", str(tmp_path / "again"), *SMALL, "--workers", "1"])
    assert digest(tmp_path / "again") == digest(mini)
    main(["--out", str(tmp_path / "other"), *SMALL, "--seed", "1"])
    assert digest(tmp_path / "other") != digest(mini)


def test_it_is_an_ordinary_sid_set(mini: Path) -> None:
    for split, count in (("train", 20), ("validation", 5), ("test", 5)):
        records = read_split(mini, split, descriptions=True, strict=True)
        assert [record.label for record in records] == [label for label in Label for _ in range(count)]
        assert all(record.description for record in records)


def test_masks_are_black_and_white_and_as_large_as_said(mini: Path) -> None:
    for row in manifest(mini, "train"):
        if row["label"] == "tampered":
            mask = cv2.imread(str(mini / "train" / "masks" / f"{Path(row['file']).stem}_mask.png"), cv2.IMREAD_UNCHANGED)
            assert mask.shape == (128, 128)
            assert set(np.unique(mask)) == {0, 255}
            assert (mask > 0).mean() == pytest.approx(row["area"], abs=1e-4)
            assert 0.02 <= row["area"] <= 0.3
            y, x = (axis.mean() / 128 for axis in np.nonzero(mask))
            assert position(x, y) in row["description"]


def test_sources_and_donors_stay_in_their_split() -> None:
    photos, ai = find([PACK / "real"], "photographs"), find([PACK / "ai"], "pictures")
    plan = plan_sources(photos, ai, sorted((PACK / "nets").iterdir()), TEST_ONLY, 0)
    for name in ("photos", "ai"):
        parts = [set(getattr(plan[split], name)) for split in SPLITS]
        assert not (parts[0] & parts[1])
        assert not (parts[0] & parts[2])
        assert not (parts[1] & parts[2])
        assert all(parts)
    assert len(plan["test"].photos) >= 25
    for split in ("train", "validation"):
        used = {*plan[split].kinds, *(net.stem for net in plan[split].nets), *(picture.parent.name for picture in plan[split].ai)}
        assert used.isdisjoint(TEST_ONLY)
    assert set(TEST_ONLY) <= {*plan["test"].kinds, *(net.stem for net in plan["test"].nets), *(picture.parent.name for picture in plan["test"].ai)}


def test_the_manifest_names_sources_of_its_split_only(mini: Path) -> None:
    seen = [{name for row in manifest(mini, split) for name in (row["source"], row.get("donor")) if name and "esrgan" not in name and len(name) > 8} for split in SPLITS]
    assert not (seen[0] & seen[1])
    assert not (seen[0] & seen[2])
    assert not (seen[1] & seen[2])


def test_another_photograph_moves_few_between_splits() -> None:
    photos = find([PACK / "real"], "photographs")
    before, after = share_out(photos[1:], 0), share_out(photos, 0)
    moved = sum(path not in after[split] for split in SPLITS for path in before[split])
    assert moved <= 2


def test_everything_vendored_is_attributed() -> None:
    import csv

    with (PACK / "ATTRIBUTION.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    files = {str(path.relative_to(PACK)) for folder in ("real", "ai", "nets") for path in (PACK / folder).rglob("*") if path.is_file()}
    assert {row["file"] for row in rows} == files
    allowed = ("public domain", "CC0", "CC-BY", "MIT")
    assert all(row["source"] and row["author"] and row["licence"].startswith(allowed) for row in rows)
    assert sum(path.stat().st_size for path in PACK.rglob("*") if path.is_file()) < 12e6


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--photos", "/nowhere"], "no folder /nowhere of photographs"),
        (["--size", "8"], "--size is 8"),
        (["--per_class", "0"], "expected at least 64 and 1"),
    ],
)
def test_bad_input_is_named(argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as failure:
        main(["--out", str(tmp_path / "x"), *argv])
    assert failure.value.code == 1
    assert message in capsys.readouterr().err


def test_an_own_folder_of_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own folder"
    own.mkdir()
    for i, photo in enumerate(sorted((PACK / "real").iterdir())[:4]):
        (own / f"{i} é{photo.suffix}").write_bytes(photo.read_bytes())
    (own / "broken.jpg").write_bytes(b"no picture")
    assert main(["--out", str(tmp_path / "mini"), "--photos", str(own), "--size", "64", "--per_class", "4"]) == 0
    assert {row["source"].split()[-1][0] for row in manifest(tmp_path / "mini", "train") if row["label"] == "real"} == {"é"}
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "mini")])
    assert "not empty" in capsys.readouterr().err


def test_more_sources_go_to_the_train_split_alone(mini: Path, tmp_path: Path) -> None:
    for folder, source in (("real", "real"), ("ai/net", "ai")):
        (tmp_path / folder).mkdir(parents=True)
        for i, path in enumerate(find([PACK / source], "pictures")[:2]):
            (tmp_path / folder / f"more{i}{path.suffix}").write_bytes(path.read_bytes())
    assert main(["--out", str(tmp_path / "mini"), "--train_photos", str(tmp_path / "real"), "--train_ai", str(tmp_path / "ai"), *SMALL]) == 0
    before, after = digest(mini), digest(tmp_path / "mini")
    held_out = [name for name in before if not name.startswith("train/")]
    assert {name: after[name] for name in held_out} == {name: before[name] for name in held_out}
    plan = gather([PACK / "real"], [PACK / "ai"], [tmp_path / "real"], [tmp_path / "ai"], TEST_ONLY, 0)
    assert [path.stem for name in ("photos", "ai") for path in getattr(plan["train"], name)[-2:]] == ["more0", "more1"] * 2


def test_pictures_of_the_same_name_by_different_generators_are_told_apart(mini: Path) -> None:
    generated = [row for row in manifest(mini, "train") if row["label"] == "full_synthetic" and "esrgan" not in row["generator"]]
    assert generated
    assert all(row["source"].split("/")[0] == row["generator"] for row in generated)


def test_an_interrupted_build_is_not_taken_for_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, argv = tmp_path / "mini", ["--size", "64", "--per_class", "4", "--workers", "1"]

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("utils.data.sid_mini.write_texts", full)
        with pytest.raises(SystemExit):
            main(["--out", str(out), *argv])
    assert not out.exists()
    assert main(["--out", str(out), *argv]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["mini"]
    assert {split.name for split in out.iterdir()} == set(SPLITS)


def test_no_shortcut_tells_the_classes_apart(tmp_path: Path) -> None:
    """File size, metadata and JPEG quality: at most 0.42 of three classes. An 8 x 8 thumbnail: AUROC at most 0.60."""
    root = tmp_path / "audit"
    main(["--out", str(root), "--size", "256", "--per_class", "400"])
    splits = [read_split(root, split) for split in ("train", "test")]
    generator = [{row["file"]: row.get("generator", "") for row in manifest(root, split)} for split in ("train", "test")]
    assert metadata_accuracy(*splits) <= 0.42

    def of(label: Label, net: str = "") -> list[list]:
        return [[record for record in records if record.label is label and made[record.id].startswith(net)] for records, made in zip(splits, generator, strict=True)]

    real, gan, tampered = of(Label.REAL), of(Label.FULL_SYNTHETIC, "esrgan"), of(Label.TAMPERED)
    assert thumbnail_auroc((real[0], tampered[0]), (real[1], tampered[1])) <= 0.60
    assert thumbnail_auroc((real[0], gan[0]), (real[1], gan[1])) <= 0.60
