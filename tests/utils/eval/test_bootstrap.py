"""Intervals from resampled photographs."""

from __future__ import annotations

import numpy as np
import pytest

from utils.eval.bootstrap import Estimate, bootstrap


def test_the_interval_holds_the_mean_and_narrows() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(3.0, 1.0, 2000)
    groups = [str(i) for i in range(2000)]
    wide, narrow = bootstrap(lambda rows: values[rows].mean(), groups, range(100)), bootstrap(lambda rows: values[rows].mean(), groups)
    assert wide.low < 3.0 < wide.high and narrow.low < 3.0 < narrow.high  # noqa: PT018
    assert narrow.high - narrow.low == pytest.approx(4 * 1.0 / 2000**0.5, rel=0.15)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_pictures_of_one_photograph_count_as_one() -> None:
    """Ten copies of each of 40 values are no more evidence than the 40."""
    values = np.repeat(np.random.default_rng(1).normal(size=40), 10)
    copied = bootstrap(lambda rows: values[rows].mean(), [str(i // 10) for i in range(400)])
    single = bootstrap(lambda rows: values[rows].mean(), [str(i) for i in range(400)])
    assert copied.high - copied.low > 2.5 * (single.high - single.low)


def test_nan_resamples_are_left_out_and_the_same_seed_repeats() -> None:
    def statistic(rows: np.ndarray) -> float:
        return float("nan") if len(set(rows.tolist())) < 3 else float(rows.mean())

    first = bootstrap(statistic, ["a", "b", "c", "d"])
    assert first == bootstrap(statistic, ["a", "b", "c", "d"])
    assert np.isfinite([first.low, first.high]).all()
    assert str(Estimate(0.5, 0.25, 0.75)) == "0.500 [0.250, 0.750]"


def test_no_rows_are_an_error() -> None:
    with pytest.raises(ValueError, match="no rows"):
        bootstrap(lambda rows: 0.0, ["a"], [])
