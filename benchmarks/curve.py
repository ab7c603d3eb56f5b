"""How time and memory grow with the number of pictures, the length of the answer and the size of the network.

    python -m benchmarks.curve --out docs/benchmarks

Each point is measured in a process of its own, whose peak resident memory it reports. The networks are those of benchmarks.networks, random weights.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import torch

from benchmarks import baseline
from benchmarks.cases import ANSWER, ask
from benchmarks.networks import SIZES, build, judge
from benchmarks.run import peak, pictures
from model.types import Label
from utils.infer.decode import read_batch
from utils.infer.pipeline import SidaPipeline

IMAGES = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (16, 32, 64, 128, 256, 512)
BATCH = 8
REPEATS = 3
PLAIN_MOST = 64  # the baseline's answer of 512 tokens takes minutes


@dataclass(frozen=True)
class Point:
    """One measurement: what is asked for, then what it cost."""

    line: str
    size: str
    images: int = 1
    tokens: int = 0  # 0: a verdict
    label: Label = Label.TAMPERED
    plain: bool = False
    seconds: float = 0.0
    megabytes: float = 0.0  # peak resident memory


def points(size: str) -> list[Point]:
    """Three curves, the baseline beside them where it takes seconds."""
    images = [Point(f"verdict, {label.title}", size, n, label=label) for label in (Label.TAMPERED, Label.REAL) for n in IMAGES]
    lengths = [Point("answer", size, tokens=n) for n in LENGTHS] + [Point("baseline", size, tokens=n, plain=True) for n in LENGTHS if n <= PLAIN_MOST]
    sizes = [Point("verdict", name) for name in SIZES] + [Point(f"baseline, {ANSWER} tokens", name, tokens=ANSWER, plain=True) for name in SIZES]
    return images + lengths + sizes


def measure(point: Point, folder: Path) -> Point:
    """Build the network, warm up, take the best of REPEATS; the baseline runs once."""
    pipe = build(point.size, folder / point.size)
    judge(pipe, point.label)
    call = _call(point, pipe, folder)
    if not point.plain:
        call()
    seconds = []
    for _ in range(1 if point.plain else REPEATS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return Point(**asdict(point) | {"seconds": min(seconds), "megabytes": peak()})


def _call(point: Point, pipe: SidaPipeline, folder: Path) -> Callable[[], object]:
    record = next(record for record in pictures(folder) if record.label is Label.TAMPERED)
    if not point.tokens:
        return functools.partial(pipe.detect, [record.image] * point.images, batch_size=BATCH)
    asked = ask(pipe, record, point.tokens)
    if point.plain:
        return functools.partial(baseline.answer, pipe.model, asked, point.tokens)
    return functools.partial(_write, pipe, asked)


def _write(pipe: SidaPipeline, asked: object) -> object:
    with mock.patch("utils.infer.decode.loop_length", return_value=0):  # random weights repeat themselves
        return read_batch(pipe.model, [asked], "generate")


def parameters(size: str, folder: Path) -> float:
    """Millions."""
    return sum(weight.numel() for weight in build(size, folder / size).model.parameters()) / 1e6


def draw(measured: Sequence[Point], millions: dict[str, float], out: Path) -> None:
    """Seconds above, megabytes below; one column for each of the three."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullLocator

    images = [p for p in measured if p.line.startswith("verdict,")]
    lengths = [p for p in measured if p.line in ("answer", "baseline")]
    sizes = [p for p in measured if p not in images and p not in lengths]
    columns = {
        "pictures": (images, lambda p: p.images),
        "tokens of the answer": (lengths, lambda p: p.tokens),
        "million parameters": (sizes, lambda p: millions[p.size]),
    }
    figure, grid = pyplot.subplots(2, 3, figsize=(12, 6), layout="constrained")
    for (title, (chosen, x)), axes in zip(columns.items(), grid.T, strict=True):
        for field, axis in zip(("seconds", "megabytes"), axes, strict=True):
            for line in dict.fromkeys(p.line for p in chosen):
                row = sorted((x(p), getattr(p, field)) for p in chosen if p.line == line)
                axis.plot(*zip(*row, strict=True), marker="o", label=line)
            axis.set(xlabel=title, ylabel={"seconds": "seconds", "megabytes": "peak resident MB"}[field], xscale="log")
            axis.set_xticks(sorted({round(x(p)) for p in chosen}), labels=sorted({round(x(p)) for p in chosen}))
            axis.xaxis.set_minor_locator(NullLocator())
            if field == "seconds":
                axis.set_yscale("log")
                axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.yaxis.set_minor_locator(NullLocator())
                axis.yaxis.set_major_formatter("{x:g}")
            else:
                axis.set_ylim(0)
            axis.grid(alpha=0.3)
            axis.legend(frameon=False)
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="medium", help="network of the first two curves")
    parser.add_argument("--only", default="", help="part of a line's name")
    parser.add_argument("--out", type=Path, required=True, help="folder for curve.png and curve.json")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    measured = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pictures(folder)
        millions = {size: parameters(size, folder) for size in SIZES}
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
            for point in points(args.size):
                if args.only in point.line:
                    measured.append(pool.submit(measure, point, folder).result())
                    sys.stderr.write(f"{measured[-1]}\n")
    rows = [asdict(point) | {"million_parameters": millions[point.size]} for point in measured]
    (args.out / "curve.json").write_text(json.dumps({"threads": torch.get_num_threads(), "points": rows}, indent=1) + "\n")
    draw(measured, millions, args.out / "curve.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
