"""The whole path with the real scripts: train on two processes, kill, resume, zero_to_fp32, merge, evaluate, chat; both stages."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

import merge_lora_weights_and_save_hf_model as merge_script
import train_SIDA
from model.checkpoint import load_pretrained, read_tensors
from tests.scripts.launch import STEPS, Ranks, deepspeed, finish, log_of, run, together, train_flags


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    """An uninterrupted run of two processes."""
    finish(deepspeed(2, "train_SIDA.py", *train_flags(place, "whole")))
    return place / "runs" / "whole"


@pytest.fixture(scope="module")
def merged(place: Path, trained: Path) -> Path:
    """The README's two commands: zero_to_fp32.py, then the merge."""
    done = run([sys.executable, "zero_to_fp32.py", ".", "../pytorch_model.bin"], cwd=trained / "ckpt_model")
    assert done.returncode == 0, done.stderr[-2000:]
    argv = ["--version", str(place / "lisa"), "--weight", str(trained / "pytorch_model.bin"), "--save_path", str(place / "SIDA-tiny"), "--precision", "fp32"]
    assert merge_script.main(argv) == 0
    return place / "SIDA-tiny"


def test_every_step_is_logged(place: Path, trained: Path) -> None:
    rows = log_of(place, "whole")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all(torch.tensor(row["loss"]).isfinite() for row in rows)
    assert json.loads((trained / "args.json").read_text())["lora_r"] == 8
    assert list(trained.glob("events.out.tfevents.*"))
    assert list((place / "vis").rglob("*.jpg"))


def test_kill_and_resume_change_nothing(place: Path, trained: Path) -> None:
    """SIGKILL of all processes at a random step; the same command goes on, and every digit of the log is the uninterrupted run's."""
    flags, step = train_flags(place, "killed"), random.randint(1, STEPS - 2)
    ranks = Ranks(2, "train_SIDA", *flags)
    log, deadline = place / "runs" / "killed" / "log.jsonl", time.monotonic() + 120
    while ranks.running and not (log.is_file() and log.read_text().count('"loss"') >= step):
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.01)
    ranks.kill()
    assert len(log_of(place, "killed")) < STEPS, "the run ended before it could be killed"
    together(2, "train_SIDA", *flags)
    assert log_of(place, "killed") == log_of(place, "whole"), f"killed after step {step}"


def test_sigterm_saves_and_leaves_cleanly(place: Path) -> None:
    flags = [*train_flags(place, "stopped"), "--epochs", 200, "--no_eval", "--save_steps", 1000]
    process = deepspeed(2, "train_SIDA.py", *flags)
    log, deadline = place / "runs" / "stopped" / "log.jsonl", time.monotonic() + 120
    while not (log.is_file() and log.read_text().count('"loss"') >= 2):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    rows = log_of(place, "stopped")
    assert (place / "runs" / "stopped" / "ckpt_last" / "latest").read_text() == f"global_step{rows[-1]['step']}"
    assert "Stopped after step" in output


def test_merge_of_the_run_folder_is_the_same(place: Path, trained: Path, merged: Path) -> None:
    argv = ["--version", str(place / "lisa"), "--weight", str(trained), "--save_path", str(place / "direct"), "--precision", "fp32"]
    assert merge_script.main(argv) == 0
    a, b = dict(read_tensors(merged)), dict(read_tensors(place / "direct"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_training_moved_what_it_should_and_nothing_else(place: Path, merged: Path) -> None:
    before, after = dict(read_tensors(place / "lisa")), dict(read_tensors(merged))
    moved = {name for name in before if not torch.equal(before[name], after[name][: len(before[name])])}
    assert any("mask_decoder" in name for name in moved)
    assert any("q_proj" in name and ".layers." in name for name in moved)
    frozen = ("image_encoder", "prompt_encoder", "mm_projector", "k_proj.weight", "mlp", "layernorm", "lm_head")
    assert not [n for n in moved if any(part in n for part in frozen) and "mask_decoder" not in n]


def test_eval_only(place: Path, merged: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a train split, on one process in batches of 3 and on two processes: the same figures."""
    import shutil

    (place / "val_only").mkdir()
    shutil.copytree(place / "set" / "validation", place / "val_only" / "validation")
    flags = ["--version", merged, "--dataset_dir", place / "val_only", "--precision", "fp32", "--log_base_dir", place / "runs", "--eval_only", "--workers", 0]
    assert train_SIDA.main([*map(str, flags), "--exp_name", "eval1", "--val_batch_size", "3"]) == 0
    printed = capsys.readouterr().out
    assert "legacy_auc" in printed
    assert "gIoU" in printed
    together(2, "train_SIDA", *flags, "--exp_name", "eval2", "--val_batch_size", 1)
    one, two = (json.loads((place / "runs" / name / "eval.json").read_text()) for name in ("eval1", "eval2"))
    assert one["images"] == two["images"] == 12
    assert one["detection"]["confusion_matrix"] == two["detection"]["confusion_matrix"]
    assert one["legacy"] == pytest.approx(two["legacy"], rel=1e-4, abs=1e-4)
    assert (place / "runs" / "eval1" / "eval" / "gallery.jpg").is_file()


def test_kept_features_allow_one_look_and_that_is_said(place: Path, merged: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import shutil

    shutil.copytree(merged, tmp_path / "four")
    config = tmp_path / "four" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"views": 4}))
    flags = ["--dataset_dir", place / "set", "--precision", "fp32", "--log_base_dir", tmp_path, "--eval_only", "--workers", 0, "--cache_features", tmp_path / "kept"]
    for version, name in ((merged, "one"), (tmp_path / "four", "four")):
        assert train_SIDA.main([*map(str, flags), "--version", str(version), "--exp_name", name]) == 0
        assert caplog.text.count("one look at each picture instead of 4") == (name == "four")
    one, four = (json.loads((tmp_path / name / "eval.json").read_text()) for name in ("one", "four"))
    assert one["detection"] == four["detection"]


def test_chat(place: Path, merged: Path) -> None:
    picture = place / "set" / "train" / "tampered" / "tampered_0.png"
    done = run([sys.executable, "chat.py", "--version", merged, "--vis_save_path", place / "out", "--model_max_length", 8], text=f"Is it real?\n{picture}\n")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Please input your prompt: " in done.stderr
    assert "text_output: " in done.stdout


def test_description_stage(place: Path, merged: Path) -> None:
    """From the merged stage-1 model: train, zero_to_fp32, merge ([END] included), evaluate, chat_description."""
    flags = [*train_flags(place, "why"), "--version", merged]
    finish(deepspeed(2, "train_SIDA.py", "--stage", "description", *flags))
    rows = log_of(place, "why")
    assert len(rows) == STEPS
    assert any(row["ce"] > 0 for row in rows)
    run_dir, target = place / "runs" / "why", place / "SIDA-why"
    done = run([sys.executable, "zero_to_fp32.py", ".", "../pytorch_model.bin"], cwd=run_dir / "ckpt_model")
    assert done.returncode == 0, done.stderr[-2000:]
    assert merge_script.main(["--version", str(merged), "--weight", str(run_dir / "pytorch_model.bin"), "--save_path", str(target), "--precision", "fp32"]) == 0
    model, tokenizer = load_pretrained(target)
    assert model.config.stage == "description"
    assert tokenizer.id_of("[END]") == len(tokenizer) - 1
    flags = ["--version", target, "--dataset_dir", place / "set", "--stage", "description", "--precision", "fp32", "--log_base_dir", place / "runs"]
    assert train_SIDA.main([*map(str, flags), "--exp_name", "why_eval", "--eval_only", "--workers", "0"]) == 0
    picture = place / "set" / "train" / "tampered" / "tampered_0.png"
    done = run([sys.executable, "chat_description.py", "--version", target, "--image", picture, "--vis_save_path", place / "out", "--json", "--model_max_length", 8])
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["label"] in ("real", "full_synthetic", "tampered")


def test_description_script(place: Path, merged: Path) -> None:
    """The original's script, its flags overridden as a user would."""
    done = run(["sh", "train_SIDA_description.sh", *train_flags(place, "script"), "--version", merged, "--epochs", 1, "--steps_per_epoch", 1, "--no_eval"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((place / "runs" / "script" / "args.json").read_text())["stage"] == "description"


@pytest.mark.parametrize(("weight", "message"), [("nowhere.bin", "no weights at"), ("LISA", "does not fit this network")])
def test_merge_refuses(place: Path, weight: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(place / "lisa" / "sam.pth") if weight == "LISA" else weight
    assert merge_script.main(["--version", str(place / "lisa"), "--weight", path, "--save_path", str(place / "no")]) == 1
    assert message in capsys.readouterr().err
