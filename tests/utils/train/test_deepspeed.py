"""DeepSpeed configuration files, and what learning rate each step gets."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from utils.train.config import TrainConfig
from utils.train.deepspeed import build_config, lr_factor

OPTIMIZER = {"type": "AdamW", "params": {"lr": 1e-5}}


def from_file(tmp_path: Path, content: object, **flags: object) -> dict:
    path = tmp_path / "ds.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return build_config(TrainConfig(precision="bf16", deepspeed_config=str(path), **flags), cuda=True)


def test_flags_reach_the_built_in_config() -> None:
    cfg = TrainConfig(precision="bf16", zero_stage=3, offload_optimizer=True, epochs=2, steps_per_epoch=7, warmup_steps=3, lr=0.5, batch_size=4)
    config = build_config(cfg, cuda=True)
    assert config["zero_optimization"]["stage"] == 3
    assert config["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert config["scheduler"]["params"]["total_num_steps"] == 14
    assert config["scheduler"]["params"]["warmup_num_steps"] == 3
    assert config["optimizer"]["params"]["lr"] == config["scheduler"]["params"]["warmup_max_lr"] == 0.5
    assert config["train_micro_batch_size_per_gpu"] == 4


def test_a_file_replaces_it(tmp_path: Path) -> None:
    config = from_file(tmp_path, {"optimizer": OPTIMIZER, "bf16": {"enabled": True}, "gradient_clipping": 3})
    sizes = {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 10, "train_batch_size": 20}
    assert config == {"optimizer": OPTIMIZER, "bf16": {"enabled": True}, "gradient_clipping": 3, **sizes}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ({"bf16": {"enabled": True}}, 'no "optimizer"'),
        ({"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}, "numbers for optimizer.params.lr"),
        ({"optimizer": OPTIMIZER, "train_batch_size": 64}, "train_batch_size is 64, but the flags make it 20"),
        ({"optimizer": OPTIMIZER, "train_micro_batch_size_per_gpu": 1}, "train_micro_batch_size_per_gpu is 1"),
        ({"optimizer": OPTIMIZER, "gradient_accumulation_steps": 1}, "gradient_accumulation_steps is 1"),
        ({"optimizer": OPTIMIZER}, "bf16.enabled does not fit --precision bf16"),
        ({"optimizer": OPTIMIZER, "bf16": {"enabled": True}, "fp16": {"enabled": True}}, "fp16.enabled does not fit"),
    ],
)
def test_refused_files(tmp_path: Path, content: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_file(tmp_path, content)


def test_absent_file() -> None:
    with pytest.raises(FileNotFoundError, match="no DeepSpeed configuration at nowhere.json"):
        build_config(TrainConfig(precision="bf16", deepspeed_config="nowhere.json"), cuda=True)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_zero_stage(stage: int) -> None:
    assert build_config(TrainConfig(precision="bf16", zero_stage=stage), cuda=True)["zero_optimization"]["stage"] == stage


def factors(total: int, warmup: int, reference: bool = False) -> list[float]:
    return [lr_factor(done, total=total, warmup=warmup, reference=reference) for done in range(total)]


def test_warm_up_then_decay() -> None:
    assert factors(8, 4) == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize(("total", "warmup"), [(10, 0), (1, 0), (1, 1), (100, 100), (5000, 100), (30, 100)])
def test_no_step_is_wasted_and_none_jumps(total: int, warmup: int) -> None:
    sequence = factors(total, warmup)
    assert all(0 < factor <= 1 for factor in sequence)
    rises = [b - a for a, b in pairwise(sequence)]
    assert all(rise <= 1 / max(1, warmup) + 1e-12 for rise in rises)
    assert lr_factor(total, total=total, warmup=min(warmup, total)) == pytest.approx(0)  # computed after the last step


def test_reference_order() -> None:
    """The original's DeepSpeed steps the schedule after the optimizer: full, zero, then the warm-up one step late."""
    assert factors(9, 4, reference=True) == pytest.approx([1.0, 0.0, 0.25, 0.5, 0.75, 1.0, 0.8, 0.6, 0.4])
