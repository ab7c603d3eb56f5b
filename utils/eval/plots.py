"""Pictures of a run.

    python -m utils.eval.plots runs/tiny --out docs/benchmarks/learning_curve.png
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

LOSSES = {"cls": "verdict", "mask_bce": "mask, bce", "mask_dice": "mask, dice"}
FIGURES = {"accuracy": "accuracy", "giou": "mask IoU, true answer given", "giou_end2end": "mask IoU, own verdict"}


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _column(rows: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    return tuple(np.array(values, dtype=float) for values in zip(*pairs, strict=True)) if pairs else (np.array([]), np.array([]))


def learning_curve(run: Path, out: Path, window: int = 50) -> None:
    """Draw training losses (running means over `window` steps) and, if it was validated, validation figures of the folder `run` to `out`.

    Raises FileNotFoundError when `run` holds no log.jsonl.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    if not (run / "log.jsonl").is_file():
        raise FileNotFoundError(f"no log.jsonl in {run}: expected the folder of a training run")
    train, validation = _lines(run / "log.jsonl"), _lines(run / "validation.jsonl")
    panels = 1 + bool(validation)
    figure, ((left, *right),) = pyplot.subplots(1, panels, figsize=(5 * panels, 3.6), layout="constrained", squeeze=False)
    for name, title in LOSSES.items():
        steps, values = _column(train, name)
        if len(values) >= window:
            left.plot(steps[window - 1 :], np.convolve(values, np.full(window, 1 / window), mode="valid"), label=title)
    left.set(xlabel="optimizer steps", ylabel=f"training loss, mean of {window} steps", ylim=(0, None))
    for axes in right:
        for name, title in FIGURES.items():
            axes.plot(*_column(validation, name), marker="o", label=title)
        axes.set(xlabel="optimizer steps", ylabel="validation split", ylim=(0, 1))
    for axes in (left, *right):
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    learning_curve(args.run, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
