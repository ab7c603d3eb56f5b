"""log.jsonl goes on without a gap; TensorBoard has the original's tags."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.utils.train.toy import flags
from utils.train.config import TrainConfig
from utils.train.logging import SCALARS, RunLog, drop_after, validation_scalars


def row(step: int, **changes: object) -> dict:
    return dict.fromkeys(SCALARS, 1 / 3) | {"step": step, "epoch": 1, "images_per_second": 2.0, "grad_norm": None, "unreadable": 0} | changes


def config(tmp_path: Path) -> TrainConfig:
    return flags(log_base_dir=str(tmp_path), exp_name="run", epochs=1, steps_per_epoch=5)


def written(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]


def test_a_resumed_log_is_continuous(tmp_path: Path) -> None:
    first = RunLog(config(tmp_path))
    for step in (1, 2, 3):
        first.step(row(step))
    first.close()
    second = RunLog(config(tmp_path), step=2)
    for step in (3, 4):
        second.step(row(step, loss=0.1 + 0.2))
    second.close()
    rows = written(tmp_path)
    assert [r["step"] for r in rows] == [1, 2, 3, 4]
    assert rows[0]["loss"] == 1 / 3
    assert rows[2]["loss"] == 0.1 + 0.2  # every digit


def test_starting_anew_empties_the_log(tmp_path: Path) -> None:
    log = RunLog(config(tmp_path))
    log.step(row(1))
    log.close()
    RunLog(config(tmp_path)).close()
    assert written(tmp_path) == []


def test_a_line_cut_short_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    drop_after(path, 5)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    drop_after(path, 1)
    assert path.read_text() == '{"step": 1}\n'
    drop_after(tmp_path / "absent.jsonl", 1)
    assert not (tmp_path / "absent.jsonl").exists()


def test_args_json(tmp_path: Path) -> None:
    RunLog(config(tmp_path)).close()
    saved = json.loads((tmp_path / "run" / "args.json").read_text())
    assert (saved["exp_name"], saved["world_size"], saved["cls_loss_weight"]) == ("run", 1, 1.0)
    assert {"torch", "transformers", "deepspeed"} <= set(saved["versions"])


def test_tensorboard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(config(tmp_path))
    log.step(row(1))
    log.step(row(2, mask=None, mask_bce=None, mask_dice=None))
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "tampered0.jpg")
    log.validation(2, 1, {"accuracy": 0.5, "legacy_gIoU": 0.25, "per_class": {"real": {"f1": 1.0}}}, "THE TABLE", tmp_path)
    log.close()
    board = EventAccumulator(str(tmp_path / "run")).Reload()
    tags = board.Tags()
    assert set(SCALARS.values()) | {"eval/accuracy", "val/giou", "val/real_f1"} == set(tags["scalars"])
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2]
    assert [event.step for event in board.Scalars("train/mask_loss")] == [1]
    assert tags["images"] == ["val/tampered0"]
    assert "THE TABLE" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "validation.jsonl").read_text())["accuracy"] == 0.5


def test_validation_tags() -> None:
    figures = {"images": 9, "accuracy": 0.5, "giou": 0.1, "legacy_accuracy": 50.0, "legacy_gIoU": 0.2, "legacy_f1": 0.3, "legacy_auc": 0.4}
    figures |= {"confusion_matrix": [[1]], "unreadable": [], "per_class": {"tampered": {"recall": 1.0}}}
    expected = {"eval/images": 9, "eval/accuracy": 0.5, "eval/giou": 0.1, "val/accuracy": 50.0, "val/giou": 0.2}
    assert validation_scalars(figures) == expected | {"val/f1_score": 0.3, "val/auc_approx": 0.4, "val/tampered_recall": 1.0}
