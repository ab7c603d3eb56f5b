"""predict.py's real main(): pictures in, records out, whatever the pictures are."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import predict
from tests.hostile import hostile
from tests.scripts.launch import ROOT
from tests.utils.infer.test_report import CHECK

HANDFUL = ROOT / "examples" / "SID_handful" / "test"
PICTURES = sorted(HANDFUL.glob("[!m]*/*.jpg"))
SAME = ("file", "probabilities", "verdict", "localization", "explanation", "checkpoint")


def records(folder: Path) -> list[dict]:
    out = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    for record in out:
        CHECK.validate(record)
    return out


def test_records_masks_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert predict.main([*map(str, PICTURES), "--out", str(out), "--format", "csv", "--batch_size", "4"]) == 0
    found = records(out)
    assert [record["file"]["name"] for record in found] == [str(path) for path in PICTURES]
    for record in (record for record in found if record["verdict"]["label"] == "tampered"):
        mask = cv2.imread(str(out / record["localization"]["mask"]), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (record["file"]["height"], record["file"]["width"])
        assert set(np.unique(mask)) == {0, 255}
        assert 100 * (mask > 0).mean() == pytest.approx(record["localization"]["tampered_percent"], abs=0.01)
        assert (out / record["localization"]["overlay"]).is_file()
    with (out / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["verdict.label"] for row in rows] == [record["verdict"]["label"] for record in found]
    assert "7 pictures" in capsys.readouterr().out


def test_batches_say_what_single_pictures_do(tmp_path: Path) -> None:
    assert predict.main([*map(str, PICTURES), "--out", str(tmp_path / "all"), "--batch_size", "7"]) == 0
    assert predict.main([*map(str, PICTURES), "--out", str(tmp_path / "one"), "--batch_size", "1"]) == 0
    for together, alone in zip(records(tmp_path / "all"), records(tmp_path / "one"), strict=True):
        assert [together[part] for part in SAME] == [alone[part] for part in SAME]


def test_unreadable_ones_have_records_and_exit_code_2(tmp_path: Path) -> None:
    place = tmp_path / "in"
    (place / "folder.jpg").mkdir(parents=True)
    (place / "broken.jpg").write_bytes(b"x")
    (place / "empty.png").touch()
    shutil.copy(PICTURES[0], place / "ok 1 größe.png")  # a JPEG, whatever its name says
    assert predict.main([str(place), "nowhere.jpg", "--out", str(tmp_path / "out")]) == 2
    found = {Path(record["file"]["name"]).name: record for record in records(tmp_path / "out")}
    assert set(found) == {"broken.jpg", "empty.png", "ok 1 größe.png", "nowhere.jpg"}
    assert "not a picture" in found["broken.jpg"]["error"]["reason"]
    assert "empty" in found["empty.png"]["error"]["reason"]
    assert found["ok 1 größe.png"]["file"]["container"] == "JPEG"
    assert found["nowhere.jpg"]["error"]["kind"] == "FileNotFoundError"


def test_pictures_of_one_name_keep_their_own_masks(tmp_path: Path) -> None:
    tampered = [path for path in PICTURES if path.parent.name == "tampered"][:2]
    for i, path in enumerate(tampered):
        (tmp_path / str(i)).mkdir()
        shutil.copy(path, tmp_path / str(i) / "photo.jpg")
    assert predict.main([str(tmp_path / "0"), str(tmp_path / "1"), "--out", str(tmp_path / "out")]) == 0
    masks = [tmp_path / "out" / record["localization"]["mask"] for record in records(tmp_path / "out")]
    assert len(set(masks)) == 2
    assert not np.array_equal(*(cv2.imread(str(mask)) for mask in masks))


def test_an_interrupted_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    folder = tmp_path / "in"
    folder.mkdir()
    for path in PICTURES:
        shutil.copy(path, folder)
    assert predict.main([str(folder), "--out", str(out)]) == 0
    whole = records(out)
    lines = (out / "predictions.jsonl").read_text().splitlines(keepends=True)
    (out / "predictions.jsonl").write_text("".join(lines[:3]) + lines[3][:50])  # killed while it wrote the fourth
    changed = Path(whole[0]["file"]["name"])
    shutil.copy(PICTURES[-1], changed)  # another picture under an old name
    capsys.readouterr()
    assert predict.main([str(folder), "--out", str(out)]) == 0
    assert "2 done before" in capsys.readouterr().out
    after = {record["file"]["name"]: record for record in records(out)}
    assert after[str(changed)]["file"]["sha256"] != whole[0]["file"]["sha256"]
    for record in whole[1:]:
        assert after[record["file"]["name"]]["probabilities"] == record["probabilities"]


def test_other_settings_need_another_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main([str(PICTURES[0]), "--out", str(tmp_path)]) == 0
    assert predict.main([str(PICTURES[0]), "--out", str(tmp_path), "--threshold", "0.3"]) == 1
    assert "threshold: None there, 0.3 here" in capsys.readouterr().err
    assert [record["run"]["views"] for record in records(tmp_path)] == [4]
    assert predict.main([str(PICTURES[0]), "--out", str(tmp_path), "--views", "1"]) == 1
    assert "views: 4 there, 1 here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["x.jpg", "--batch_size", "0"], "batch_size is 0"),
        (["x.jpg", "--abstain", "2"], "abstain is 2.0"),
        (["x.jpg", "--views", "9"], "views is 9: expected 1"),
        (["x.jpg", "--version", "nowhere"], "no config.json in nowhere"),
        (["https://example.org/x.jpg"], "--allow_url"),
    ],
)
def test_what_does_not_do_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    assert predict.main([*argv, "--out", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_code:
        predict.main(["--nonsense"])
    assert exit_code.value.code == 1


def test_a_place_that_cannot_be_written_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert predict.main([str(PICTURES[0]), "--out", str(tmp_path / "file" / "out")]) == 1
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize("count", [36, pytest.param(500, marks=pytest.mark.slow)])
def test_hostile_files(tmp_path: Path, count: int) -> None:
    """In a process of its own: no crash, no hang, a record for each, less than 3 GB."""
    place = tmp_path / "in"
    place.mkdir()
    for name, content in hostile(count):
        (place / name).write_bytes(content)
    (tmp_path / "list.txt").write_text("\n".join(str(path) for path in sorted(place.iterdir())))
    peak = "import sys, predict; code = predict.main(sys.argv[1:]); print(open('/proc/self/status').read()); sys.exit(code)"
    command = [sys.executable, "-c", peak, str(tmp_path / "list.txt"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 2, done.stderr
    assert len(records(tmp_path / "out")) == count
    assert int(re.search(r"VmHWM:\s+(\d+) kB", done.stdout)[1]) < 3e6


@pytest.mark.slow
def test_a_hundred_megapixels(tmp_path: Path) -> None:
    """Two of them, masks and all, in less than 3 GB."""
    rng = np.random.default_rng(0)
    for i in range(2):
        small = rng.integers(0, 256, (100, 100, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"{i}.jpg"), cv2.resize(small, (10_000, 10_000), interpolation=cv2.INTER_CUBIC))
    peak = "import sys, predict; code = predict.main(sys.argv[1:]); print(open('/proc/self/status').read()); sys.exit(code)"
    command = [sys.executable, "-c", peak, str(tmp_path / "0.jpg"), str(tmp_path / "1.jpg"), "--threshold", "0.0", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert all("too large" in " ".join(record["verdict"]["reasons"]) for record in records(tmp_path / "out"))
    assert int(re.search(r"VmHWM:\s+(\d+) kB", done.stdout)[1]) < 3e6
