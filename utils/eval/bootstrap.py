"""95 % confidence intervals by resampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A figure, and the interval in which it lies in 95 % of resamples."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(statistic: Callable[[np.ndarray], float], groups: Sequence[str], rows: Sequence[int] | None = None, seed: int = 0) -> Estimate:
    """`statistic` of `rows` (default: all), and its percentile interval over RESAMPLES resampled groups.

    `groups` names each row's source: pictures cut from one photograph are not independent, so whole photographs are drawn with
    replacement (the cluster bootstrap; Field and Welsh 2007). `statistic` takes row numbers and may return nan, which is left out.
    """
    chosen = np.arange(len(groups)) if rows is None else np.asarray(rows)
    if len(chosen) == 0:
        raise ValueError("no rows to compute a figure of")
    names, index = np.unique(np.asarray(groups)[chosen], return_inverse=True)
    members = [chosen[index == i] for i in range(len(names))]
    rng = np.random.default_rng(seed)
    draws = [statistic(np.concatenate([members[i] for i in rng.integers(len(names), size=len(names))])) for _ in range(RESAMPLES)]
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Estimate(float(statistic(chosen)), float(low), float(high))
