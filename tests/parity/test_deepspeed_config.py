"""The DeepSpeed dictionary equals the one that the original's train_SIDA.py builds from the same flags."""

from __future__ import annotations

import json

import pytest

from utils.train.config import TrainConfig
from utils.train.deepspeed import build_config

ORIGINAL = {
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 10,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-05, "weight_decay": 0.0, "betas": [0.9, 0.95]}},
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {"total_num_steps": 5000, "warmup_min_lr": 0, "warmup_max_lr": 1e-05, "warmup_num_steps": 100, "warmup_type": "linear"},
    },
    "fp16": {"enabled": False, "loss_scale": 0, "initial_scale_power": 12, "loss_scale_window": 1000, "min_loss_scale": 1, "hysteresis": 2},
    "gradient_clipping": 1.0,
    "bf16": {"enabled": False},
    "zero_optimization": {
        "stage": 2,
        "contiguous_gradients": True,
        "overlap_comm": True,
        "reduce_scatter": True,
        "reduce_bucket_size": 500000000.0,
        "allgather_bucket_size": 500000000.0,
    },
}


@pytest.mark.parametrize("cuda", [True, False])
def test_equals_the_original(cuda: bool) -> None:
    config = json.loads(json.dumps(build_config(TrainConfig(precision="fp32"), cuda)))  # tuples to lists, as the golden was stored
    if not cuda:
        assert config["optimizer"]["params"].pop("torch_adam") is True  # the one addition: nothing to compile on a CPU
    assert config == ORIGINAL


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_precision_switches_one_entry(precision: str) -> None:
    config = build_config(TrainConfig(precision=precision), cuda=True)
    assert (config["fp16"]["enabled"], config["bf16"]["enabled"]) == (precision == "fp16", precision == "bf16")
