"""A network small enough to train under DeepSpeed in a unit test, with dropout so that random states matter."""

from __future__ import annotations

import torch
from deepspeed import DeepSpeedEngine
from torch import Tensor, nn

from utils.train.config import TrainConfig
from utils.train.engine import build_engine, join


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.dropout, self.second = nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.dropout(self.first(x))).square().mean()


def flags(**changes: object) -> TrainConfig:
    return TrainConfig(**{"precision": "fp32", "lr": 0.01, "warmup_steps": 2, "batch_size": 2, "grad_accumulation_steps": 2, **changes})


def engine(cfg: TrainConfig | None = None, model: Toy | None = None) -> DeepSpeedEngine:
    join(torch.device("cpu"))
    built = build_engine(model or Toy(), cfg or flags(), torch.device("cpu"))
    torch.manual_seed(1)
    return built


def train(engine: DeepSpeedEngine, steps: int) -> list[float]:
    """The losses of `steps` optimizer steps."""
    losses = []
    for _ in range(steps * engine.gradient_accumulation_steps()):
        loss = engine(torch.ones(2, 4, dtype=next(engine.module.parameters()).dtype))
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses
