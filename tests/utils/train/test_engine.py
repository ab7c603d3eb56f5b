"""Devices, environment, and DeepSpeed around a toy."""

from __future__ import annotations

import os

import pytest
import torch

from tests.utils.train.toy import Toy, engine, flags, train
from utils.train.config import TrainConfig
from utils.train.engine import pick_device, set_environment

LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in LAUNCHER:  # set first, so that monkeypatch removes what the test adds
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def test_plain_python_gets_an_environment(bare: pytest.MonkeyPatch) -> None:
    set_environment()
    values = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR")]
    assert values == ["0", "0", "1", "1", "127.0.0.1"]
    assert int(os.environ["MASTER_PORT"]) > 0


def test_a_launchers_environment_stays(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("RANK", "3")
    bare.setenv("LOCAL_WORLD_SIZE", "2")
    bare.setenv("MASTER_PORT", "12345")
    set_environment()
    assert [os.environ[name] for name in ("RANK", "LOCAL_SIZE", "MASTER_PORT")] == ["3", "2", "12345"]


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(TrainConfig(precision="bf16")).type == "cpu"
    with pytest.raises(ValueError, match="--precision bf16 or fp32"):
        pick_device(TrainConfig())
    with pytest.raises(ValueError, match="torch sees no GPU"):
        pick_device(TrainConfig(device="cuda"))


def test_devices_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert pick_device(TrainConfig(local_rank=1)) == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert pick_device(TrainConfig()) == torch.device("cuda", 2)
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        pick_device(TrainConfig(device="cpu"))


@pytest.mark.parametrize(("compat", "expected"), [("none", [0.5, 1.0, 2 / 3, 1 / 3]), ("reference", [1.0, 0.0, 0.5, 1.0])])
def test_the_steps_get_the_schedules_lr(compat: str, expected: list[float]) -> None:
    cfg = flags(compat=compat, epochs=1, steps_per_epoch=4, warmup_steps=2)
    toy = engine(cfg)
    seen = []
    for _ in range(4):
        seen.append(toy.get_lr()[0] / cfg.lr)
        train(toy, steps=1)
    assert seen == pytest.approx(expected)


def test_a_short_run_is_told_that_warm_up_does_not_end(caplog: pytest.LogCaptureFixture) -> None:
    engine(flags(epochs=1, steps_per_epoch=4, warmup_steps=8))
    assert "lr only reaches 50 %" in caplog.text


def test_frozen_parameters_stay() -> None:
    model = Toy()
    model.first.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(engine(flags(), model), steps=2)
    after = model.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"second.weight", "second.bias"}


def test_nothing_to_train() -> None:
    with pytest.raises(ValueError, match="no parameter to train"):
        engine(flags(), Toy().requires_grad_(False))
