"""Checkpoints: exact continuation, killed at any moment, disk full, folders that are none."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.utils.train.toy import engine, flags, train
from utils.train import checkpoints
from utils.train.checkpoints import TrainState, load, save


def tags(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def latest(folder: Path) -> str:
    return (folder / "latest").read_text()


@pytest.mark.parametrize(("precision", "zero"), [("fp32", 0), ("fp32", 1), ("fp32", 2), ("fp32", 3), ("bf16", 2), ("bf16", 3)])
def test_resuming_changes_no_digit(tmp_path: Path, precision: str, zero: int) -> None:
    cfg = flags(precision=precision, zero_stage=zero)
    whole = engine(cfg)
    train(whole, 3)
    assert save(whole, tmp_path, TrainState(global_step=3, best_accuracy=0.5))
    drawn = (random.random(), np.random.rand())
    expected, lr = train(whole, 4), whole.get_lr()

    again = engine(cfg)
    train(again, 1)
    state = load(again, tmp_path)
    assert state == TrainState(global_step=3, best_accuracy=0.5)
    assert (random.random(), np.random.rand()) == drawn
    assert train(again, 4) == expected
    assert again.get_lr() == lr


def test_zero_to_fp32_gives_every_weight(tmp_path: Path) -> None:
    trained = engine()
    trained.module.first.requires_grad_(False)
    train(trained, 1)
    save(trained, tmp_path / "ckpt_model", TrainState(global_step=1))
    subprocess.run([sys.executable, "zero_to_fp32.py", ".", "../pytorch_model.bin"], cwd=tmp_path / "ckpt_model", check=True, capture_output=True)
    weights = torch.load(tmp_path / "pytorch_model.bin" / "pytorch_model.bin")
    assert {name: value.tolist() for name, value in weights.items()} == {name: value.tolist() for name, value in trained.module.state_dict().items()}


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    toy = engine()
    for step in (1, 2, 10):
        save(toy, tmp_path, TrainState(global_step=step), keep=2)
    assert tags(tmp_path) == ["global_step10", "global_step2"]
    assert latest(tmp_path) == "global_step10"


def test_a_rolled_back_future_goes(tmp_path: Path) -> None:
    toy = engine()
    save(toy, tmp_path, TrainState(global_step=9))
    save(toy, tmp_path, TrainState(global_step=4), keep=3)
    assert tags(tmp_path) == ["global_step4"]


def test_an_interrupted_save_leaves_the_previous_and_goes_at_the_next(tmp_path: Path) -> None:
    toy = engine()
    save(toy, tmp_path, TrainState(global_step=1))
    shutil.copytree(tmp_path / "global_step1", tmp_path / "global_step2.tmp")
    assert load(toy, tmp_path).global_step == 1
    save(toy, tmp_path, TrainState(global_step=3))
    assert tags(tmp_path) == ["global_step3"]


def test_killed_between_the_files_and_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = engine()
    save(toy, tmp_path, TrainState(global_step=1))

    def killed(text: str, path: str) -> None:
        if path.endswith("latest"):
            raise KeyboardInterrupt
        Path(path).write_text(text)

    monkeypatch.setattr(checkpoints, "_replace_text", killed)
    with pytest.raises(KeyboardInterrupt):
        save(toy, tmp_path, TrainState(global_step=2))
    monkeypatch.undo()
    assert tags(tmp_path) == ["global_step1", "global_step2"]
    assert load(toy, tmp_path).global_step == 1
    save(toy, tmp_path, TrainState(global_step=2))
    assert (latest(tmp_path), tags(tmp_path)) == ("global_step2", ["global_step2"])


def test_an_interrupted_first_save_is_no_checkpoint(tmp_path: Path) -> None:
    assert not checkpoints.exists(tmp_path / "ckpt_last")
    (tmp_path / "global_step2.tmp").mkdir()
    (tmp_path / "zero_to_fp32.py").touch()
    assert not checkpoints.exists(tmp_path)
    (tmp_path / "global_step2").mkdir()
    assert checkpoints.exists(tmp_path)


def full_disk(state_dict: object, path: str) -> None:
    Path(path).write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    toy = engine()
    save(toy, tmp_path, TrainState(global_step=1))
    write, toy.checkpoint_engine.save = toy.checkpoint_engine.save, full_disk
    assert save(toy, tmp_path, TrainState(global_step=2)) is False
    assert "No space left on device" in caplog.text
    assert f"what was in {tmp_path} still stands" in caplog.text
    assert tags(tmp_path) == ["global_step1"]
    with pytest.raises(OSError, match="could not write checkpoint"):
        save(toy, tmp_path, TrainState(global_step=2), required=True)
    assert load(toy, tmp_path).global_step == 1
    toy.checkpoint_engine.save = write
    assert save(toy, tmp_path, TrainState(global_step=2))
    assert tags(tmp_path) == ["global_step2"]


def test_torchs_own_words_for_a_full_disk(tmp_path: Path) -> None:
    errors: list[str] = []

    def write(content: object, path: str) -> None:
        Path(path).write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    checkpoints._attempt(errors, tmp_path / "x.pt", write, None)
    assert errors == ["x.pt of rank 0: [enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"]
    assert list(tmp_path.iterdir()) == []  # the half file made room for `zero_to_fp32.py`


def test_other_errors_are_not_swallowed(tmp_path: Path) -> None:
    toy = engine()

    def broken(state_dict: object, path: str) -> None:
        raise RuntimeError("CUDA error")

    toy.checkpoint_engine.save = broken
    with pytest.raises(RuntimeError, match="CUDA error"):
        save(toy, tmp_path, TrainState(global_step=2))


def test_update_state(tmp_path: Path) -> None:
    toy = engine()
    save(toy, tmp_path, TrainState(global_step=1))
    checkpoints.update_state(tmp_path, TrainState(global_step=1, best_accuracy=0.75, validated_step=1))
    assert load(toy, tmp_path) == TrainState(global_step=1, best_accuracy=0.75, validated_step=1)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="a checkpoint folder holds `latest`"):
        checkpoints.find_tag(tmp_path / "nothing")


def test_no_latest(tmp_path: Path) -> None:
    (tmp_path / "global_step1").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no `latest`.*found \['global_step1'\]"):
        checkpoints.find_tag(tmp_path)


def test_latest_names_nothing(tmp_path: Path) -> None:
    (tmp_path / "latest").write_text("global_step7")
    with pytest.raises(FileNotFoundError, match="names global_step7, which is not there"):
        checkpoints.find_tag(tmp_path)


def test_somebody_elses_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "latest").write_text("global_step7")
    (tmp_path / "global_step7").mkdir()
    with pytest.raises(ValueError, match=r"no state\.json"):
        checkpoints.find_tag(tmp_path)


def test_other_number_of_processes(tmp_path: Path) -> None:
    (tmp_path / "latest").write_text("global_step7")
    (tmp_path / "global_step7").mkdir()
    (tmp_path / "global_step7" / "state.json").write_text(json.dumps({"world_size": 4}))
    with pytest.raises(ValueError, match="written by 4 processes, now there are 1: resume with 4"):
        checkpoints.find_tag(tmp_path)
