"""Where the time goes: the least that a case's operations and its weights' bytes could take on this machine, and what takes most beyond it.

The floor by operations counts multiply-adds of matrix products, convolutions and attention at the rate of one large product; the floor by bytes
reads each weight once for each time its layer is called, at the rate of one large copy. Both rates are measured beside the cases.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks.cases import Case

TRIES = 5


@dataclass(frozen=True)
class Machine:
    """What it does at best, in fp32."""

    flops: float  # per second
    bandwidth: float  # bytes per second


@dataclass
class Floor:
    """Of one call."""

    operations: float  # floating-point operations
    weights: float  # bytes
    largest: str  # the operation that took most of the time
    share: float  # how much of it, 0..1

    def seconds(self, machine: Machine) -> float:
        """The larger of both floors."""
        return max(self.operations / machine.flops, self.weights / machine.bandwidth)


def _best(call: Callable[[], Any]) -> float:
    times = []
    for _ in range(TRIES):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def machine(side: int = 3072, copied: int = 1 << 28) -> Machine:
    """Measure: a product of two `side` x `side` matrices, a copy of `copied` bytes (read and written)."""
    a, b = torch.rand(side, side), torch.rand(side, side)
    source, target = torch.zeros(copied, dtype=torch.uint8), torch.zeros(copied, dtype=torch.uint8)
    return Machine(2 * side**3 / _best(lambda: a @ b), 2 * copied / _best(lambda: target.copy_(source)))


def _attention(q: Sequence[int], k: Sequence[int], v: Sequence[int], *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward(grad: Sequence[int], q: Sequence[int], k: Sequence[int], v: Sequence[int], *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 5 * sdpa_flop_count(q, k, v) // 2  # five products instead of two


ATTENTION = {  # torch counts those of GPUs only
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def measure(case: Case) -> Floor:
    """Run our side twice, once counting and once profiling."""
    read = 0

    def count(module: nn.Module, *_: Any) -> None:
        nonlocal read
        read += sum(weight.nbytes for weight in module.parameters(recurse=False) if not isinstance(module, nn.Embedding))

    case.prepare()
    hooks = [module.register_forward_pre_hook(count) for module in case.model.modules()]
    try:
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
            case.ours()
    finally:
        for hook in hooks:
            hook.remove()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        case.ours()
    events = sorted(profiled.key_averages(), key=lambda event: -event.self_cpu_time_total)
    spent = sum(event.self_cpu_time_total for event in events)
    return Floor(counter.get_total_flops(), read, events[0].key, events[0].self_cpu_time_total / spent)


def table(rows: Sequence[tuple[str, float, Floor]], best: Machine) -> str:
    """Markdown: case, seconds, both floors in seconds, ratio, and what took most."""
    lines = ["| case | measured, s | floor by operations, s | floor by bytes, s | measured / floor | largest term |", "|---|---|---|---|---|---|"]
    for name, seconds, floor in rows:
        operations, weights = floor.operations / best.flops, floor.weights / best.bandwidth
        ratio = seconds / floor.seconds(best)
        lines.append(f"| {name} | {seconds:.3f} | {operations:.3f} | {weights:.3f} | {ratio:.1f} | `{floor.largest}` {floor.share:.0%} |")
    return "\n".join(lines) + "\n"
