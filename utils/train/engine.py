"""The process group and DeepSpeed's engine, under `deepspeed`, `torchrun` or plain `python`, with or without a GPU."""

from __future__ import annotations

import atexit
import logging
import os
import socket
import time
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from utils.train.config import TrainConfig
from utils.train.deepspeed import build_config, lr_factor

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PATIENCE = timedelta(minutes=60)  # a rank may wait for another that writes a checkpoint
LAST_TENSORS = 0.2  # seconds for Gloo's threads to let go of them; 0.02 were enough where it was measured


def pick_device(cfg: TrainConfig) -> torch.device:
    """This rank's device. Raises ValueError for cuda, or fp16, without a GPU."""
    available = torch.cuda.is_available()
    if cfg.device == "cuda" and not available:
        raise ValueError("--device cuda, but torch sees no GPU: use --device cpu")
    cuda = available and cfg.device != "cpu"
    if cfg.precision == "fp16" and not cuda:
        raise ValueError("--precision fp16 needs a GPU: use --precision bf16 or fp32")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", cfg.local_rank))) if cuda else torch.device("cpu")


def join(device: torch.device) -> None:
    """Join (or start, as rank 0 of 1) the process group of the launcher's environment."""
    if dist.is_initialized():
        return
    set_environment()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"  # validation's figures are summed up in CPU memory
    dist.init_process_group(backend, timeout=PATIENCE)
    atexit.register(_leave)


def _leave() -> None:
    """Gloo's threads outlive the group, which DeepSpeed still refers to. Dropping a tensor they need the interpreter; once it ends they would abort."""
    if dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(LAST_TENSORS)


def set_environment() -> None:
    """Fill in the variables that `deepspeed` and `torchrun` set and plain `python` does not."""
    local_world = os.environ.get("LOCAL_WORLD_SIZE", "1")
    defaults = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": local_world, "MASTER_ADDR": "127.0.0.1"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(_free_port())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def build_engine(model: nn.Module, cfg: TrainConfig, device: torch.device) -> DeepSpeedEngine:
    """DeepSpeed's engine around `model`, optimising what requires a gradient. Needs cfg.steps_per_epoch > 0."""
    cuda = device.type == "cuda"
    if not cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if not cuda:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # or it is compiled first, a minute
    config = build_config(cfg, cuda)
    schedule = None if cfg.deepspeed_config and "scheduler" in config else partial(make_schedule, cfg)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("no parameter to train: check --lora_r and --train_mask_decoder")
    return deepspeed.initialize(model=model, model_parameters=parameters, config=config, lr_scheduler=schedule)[0]


def make_schedule(cfg: TrainConfig, optimizer: Optimizer) -> LambdaLR:
    """`lr_factor` as a scheduler that the engine steps after each optimizer step."""
    if cfg.total_steps < cfg.warmup_steps:
        peak = lr_factor(cfg.total_steps - 1, total=cfg.total_steps, warmup=cfg.warmup_steps, reference=cfg.reference)
        log.warning("%d steps are fewer than the warm-up's %d: lr only reaches %.0f %%; see --warmup_steps", cfg.total_steps, cfg.warmup_steps, 100 * peak)
    return LambdaLR(optimizer, partial(lr_factor, total=cfg.total_steps, warmup=cfg.warmup_steps, reference=cfg.reference))
