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
from tests.scripts.launch import deepspeed, finish, free_port, run
from tests.tiny import build_tiny_lisa, build_tiny_set

STEPS = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`lisa`, `set` and `runs` in one folder."""
    root = tmp_path_factory.mktemp("path")
    build_tiny_lisa(root / "lisa")
    build_tiny_set(root / "set", per_class=4)
    return root


def train_flags(place: Path, name: str) -> list[object]:
    where = ["--version", place / "lisa", "--dataset_dir", place / "set", "--val_dataset", place / "set", "--vision_pretrained", place / "lisa" / "sam.pth"]
    where += ["--log_base_dir", place / "runs", "--exp_name", name, "--vis_save_path", place / "vis"]
    size = ["--precision", "fp32", "--batch_size", 1, "--grad_accumulation_steps", 2, "--epochs", 2, "--steps_per_epoch", STEPS // 2, "--workers", 1]
    return [*where, *size, "--lr", 0.001, "--warmup_steps", 2, "--save_steps", 1, "--val_batch_size", 2, "--augment"]


def log_of(place: Path, name: str) -> list[dict]:
    """What a run logged per step, without its wall times."""
    rows = [json.loads(line) for line in (place / "runs" / name / "log.jsonl").read_text().splitlines()]
    timed = ("images_per_second", "seconds", "data_seconds")
    return [{key: value for key, value in row.items() if key not in timed} for row in rows if "loss" in row]


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


@pytest.mark.parametrize(("mixing", "zero", "vision"), [("homogeneous", 2, False), ("mixed", 2, False), ("mixed", 3, False), ("mixed", 2, True)])
def test_two_processes_are_one_with_twice_the_batches(place: Path, mixing: str, zero: int, vision: bool) -> None:
    """Same data, same sums: also when one rank's batch has masks and the other's has none."""
    flags = [*train_flags(place, "x"), "--lora_dropout", 0, "--no_eval", "--batch_mixing", mixing, "--epochs", 1, "--steps_per_epoch", 3, "--save_steps", 9]
    flags += ["--train_vision", "--lora_r", 0] * vision
    names = f"one_{mixing}{zero}{vision}", f"two_{mixing}{zero}{vision}"
    done = run([sys.executable, "train_SIDA.py", *flags, "--exp_name", names[0], "--grad_accumulation_steps", 4])
    assert done.returncode == 0, done.stderr[-3000:]
    finish(deepspeed(2, "train_SIDA.py", *flags, "--exp_name", names[1], "--grad_accumulation_steps", 2, "--zero_stage", zero))
    for one, two in zip(log_of(place, names[0]), log_of(place, names[1]), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)


def test_the_other_ways_to_train(place: Path) -> None:
    """Plain python in bf16 with the original's accidents; torchrun with the optimizer offloaded; a DeepSpeed file."""
    short = ["--no_eval", "--epochs", 1, "--steps_per_epoch", 2]
    config = place / "ds.json"
    config.write_text(json.dumps({"optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}, "zero_optimization": {"stage": 2}}))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", 2, f"--master_port={free_port()}"]
    for name, command in {
        "compat": [sys.executable, "train_SIDA.py", "--compat", "reference", "--precision", "bf16"],
        "torchrun": [*torchrun, "train_SIDA.py", "--offload_optimizer"],
        "file": [sys.executable, "train_SIDA.py", "--deepspeed_config", config],
    }.items():
        at = command.index("train_SIDA.py") + 1
        done = run([*command[:at], *train_flags(place, name), *short, *command[at:]])
        assert done.returncode == 0, done.stderr[-3000:]
        assert len(log_of(place, name)) == 2


def test_kill_and_resume_change_nothing(place: Path, trained: Path) -> None:
    """SIGKILL of all processes at a random step; the same command goes on, and every digit of the log is the uninterrupted run's."""
    flags, step = train_flags(place, "killed"), random.randint(1, STEPS - 2)
    process = deepspeed(2, "train_SIDA.py", *flags)
    log, deadline = place / "runs" / "killed" / "log.jsonl", time.monotonic() + 120
    while process.poll() is None and not (log.is_file() and log.read_text().count('"loss"') >= step):
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(log_of(place, "killed")) < STEPS, "the run ended before it could be killed"
    finish(deepspeed(2, "train_SIDA.py", *flags))
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
    finish(deepspeed(2, "train_SIDA.py", *flags, "--exp_name", "eval2", "--val_batch_size", 1))
    one, two = (json.loads((place / "runs" / name / "eval.json").read_text()) for name in ("eval1", "eval2"))
    assert one["images"] == two["images"] == 12
    assert one["detection"]["confusion_matrix"] == two["detection"]["confusion_matrix"]
    assert one["legacy"] == pytest.approx(two["legacy"], rel=1e-4, abs=1e-4)
    assert (place / "runs" / "eval1" / "eval" / "gallery.jpg").is_file()


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
