"""DeepSpeed's configuration and the learning rate's course."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.distributed import world_size
from utils.train.config import TrainConfig


def build_config(cfg: TrainConfig, cuda: bool) -> dict[str, Any]:
    """The dictionary for deepspeed.initialize: the original's, or `--deepspeed_config`'s file. Needs cfg.steps_per_epoch > 0.

    Errors as `read_config`.
    """
    return read_config(cfg) if cfg.deepspeed_config else _built_in(cfg, cuda)


def _built_in(cfg: TrainConfig, cuda: bool) -> dict[str, Any]:
    overlap = cfg.zero_stage != 1  # with ZeRO-1, DeepSpeed 0.19 then reduces buckets of different sizes on different ranks
    zero = {"stage": cfg.zero_stage, "contiguous_gradients": True, "overlap_comm": overlap, "reduce_scatter": True}
    zero |= {"reduce_bucket_size": 5e8, "allgather_bucket_size": 5e8}
    adam = {"lr": cfg.lr, "weight_decay": 0.0, "betas": (cfg.beta1, cfg.beta2)}
    warmup = {"warmup_min_lr": 0, "warmup_max_lr": cfg.lr, "warmup_num_steps": cfg.warmup_steps, "warmup_type": "linear"}
    loss_scale = {"loss_scale": 0, "initial_scale_power": 12, "loss_scale_window": 1000, "min_loss_scale": 1, "hysteresis": 2}
    config = {
        "train_micro_batch_size_per_gpu": cfg.batch_size,
        "gradient_accumulation_steps": cfg.grad_accumulation_steps,
        "optimizer": {"type": "AdamW", "params": adam},
        "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": cfg.total_steps, **warmup}},
        "fp16": {"enabled": cfg.precision == "fp16", **loss_scale},  # loss_scale 0 = dynamic
        "gradient_clipping": 1.0,
        "bf16": {"enabled": cfg.precision == "bf16"},
        "zero_optimization": zero,
    }
    if cfg.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if not cuda:  # DeepSpeed's own Adam would be compiled first: a minute, and a C++ compiler
        adam["torch_adam"] = True
    return config


def read_config(cfg: TrainConfig) -> dict[str, Any]:
    """`--deepspeed_config`'s file, batch fields filled in.

    Raises FileNotFoundError without the file, ValueError for broken JSON, "auto" values, no optimizer, or a batch size or
    precision other than the flags'.
    """
    path = Path(cfg.deepspeed_config)
    if not path.is_file():
        raise FileNotFoundError(f"no DeepSpeed configuration at {path}: give --deepspeed_config a JSON file, or leave it out")
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if autos := list(_autos(config)):
        raise ValueError(f'{path}: "auto" is not supported, write numbers for {", ".join(autos)}')
    if "optimizer" not in config:
        raise ValueError(f'{path} has no "optimizer": it replaces the built-in configuration, so copy that part from utils/train/deepspeed.py')
    for name, value in _fields_of_flags(cfg).items():
        if (given := config.setdefault(name, value)) != value:
            raise ValueError(f"{path}: {name} is {given}, but the flags make it {value}: change one of them")
    for name in ("fp16", "bf16"):
        if config.get(name, {}).get("enabled", False) != (cfg.precision == name):
            raise ValueError(f"{path}: {name}.enabled does not fit --precision {cfg.precision}: change one of them")
    return config


def _fields_of_flags(cfg: TrainConfig) -> dict[str, int]:
    micro, accumulation = cfg.batch_size, cfg.grad_accumulation_steps
    return {"train_micro_batch_size_per_gpu": micro, "gradient_accumulation_steps": accumulation, "train_batch_size": micro * accumulation * world_size()}


def _autos(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _autos(inner, f"{path}.{name}" if path else name)
    elif value == "auto":
        yield path


def lr_factor(done: int, *, total: int, warmup: int, reference: bool = False) -> float:
    """Share of the peak learning rate that the next optimizer step gets, after `done` steps of `total`.

    Step n = done + 1 gets n / warmup up to warmup, then falls linearly to 1 / (total - warmup + 1) at step `total`: none is wasted
    at 0, none starts at the peak. DeepSpeed 0.19's own WarmupDecayLR gives 0 to the first two steps. `reference` is what the
    original's DeepSpeed does: step 1 at the peak, step 2 at 0, step n at (n - 2) / warmup.
    """
    if reference:
        step = done - 1
        if step < 0:
            return 1.0
        return step / warmup if step < warmup else max(0.0, (total - step) / max(1, total - warmup))
    step = done + 1
    if step <= warmup:
        return step / warmup
    return max(0.0, (total - step + 1) / (total - warmup + 1))
