"""The other ways to start training, and that two processes give what one gives."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import train_SIDA
from tests.scripts.launch import free_port, log_of, run, together, train_flags


@pytest.mark.parametrize(("mixing", "zero", "vision"), [("homogeneous", 2, False), ("mixed", 2, False), ("mixed", 3, False), ("mixed", 2, True)])
def test_two_processes_are_one_with_twice_the_batches(place: Path, mixing: str, zero: int, vision: bool) -> None:
    """Same data, same sums: also when one rank's batch has masks and the other's has none."""
    flags = [*train_flags(place, "x"), "--lora_dropout", 0, "--no_eval", "--batch_mixing", mixing, "--epochs", 1, "--steps_per_epoch", 3, "--save_steps", 9]
    flags += ["--train_vision", "--lora_r", 0] * vision
    names = f"one_{mixing}{zero}{vision}", f"two_{mixing}{zero}{vision}"
    assert train_SIDA.main(list(map(str, [*flags, "--exp_name", names[0], "--grad_accumulation_steps", 4]))) == 0
    together(2, "train_SIDA", *flags, "--exp_name", names[1], "--grad_accumulation_steps", 2, "--zero_stage", zero)
    for one, two in zip(log_of(place, names[0]), log_of(place, names[1]), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)


def test_the_other_ways_to_train(place: Path) -> None:
    """Plain python in bf16 with the original's accidents; torchrun with the optimizer offloaded; a DeepSpeed file."""
    short = ["--no_eval", "--epochs", 1, "--steps_per_epoch", 2]
    config = place / "ds.json"
    config.write_text(json.dumps({"optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}, "zero_optimization": {"stage": 2}}))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", 2, f"--master_port={free_port()}"]
    done = run([*torchrun, "train_SIDA.py", *train_flags(place, "torchrun"), *short, "--offload_optimizer"])
    assert done.returncode == 0, done.stderr[-3000:]
    for name, more in {"compat": ["--compat", "reference", "--precision", "bf16"], "file": ["--deepspeed_config", config]}.items():
        assert train_SIDA.main(list(map(str, [*train_flags(place, name), *short, *more]))) == 0
    assert all(len(log_of(place, name)) == 2 for name in ("torchrun", "compat", "file"))
