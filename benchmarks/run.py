"""Run the cases and print ratios: the baseline's time over ours, median and range over repetitions that alternate.

    python -m benchmarks.run --size medium --out docs/benchmarks
    python -m benchmarks.run --size small --only verdict --repeats 3
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

from benchmarks import floor
from benchmarks.cases import Case, epoch_cases, loading_cases, reading_cases, training_cases, validation_cases
from benchmarks.networks import SIZES, build
from model.types import Label
from utils.data.records import Record
from utils.data.sid_mini import main as build_pictures
from utils.data.sid_set import read_split

BARS = {
    "verdict on a tampered picture": 12,
    "verdict on a real picture": 40,
    "answer of 512 tokens": 20,
    "training step, 2 real pictures": 2,
    "training step, 2 tampered pictures": 1.2,
    "validation of 16 pictures, batch 16": 2.5,
    "data loading, 2 workers": 2,
    "second epoch of 12 pictures with --cache_features": 3,
}


@dataclass
class Row:
    """A case, measured."""

    case: str
    ours: float  # seconds, median
    plain: float
    ratios: list[float]
    difference: float
    bar: float | None
    megabytes: tuple[float, float] | None = None  # peak resident memory of a process that ran our side, the plain side

    @property
    def ratio(self) -> float:
        """Median over the repetitions."""
        return median(self.ratios)


def seconds(call: object) -> tuple[float, object]:
    """How long `call` takes, and what it returns."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def measure(case: Case, repeats: int) -> Row:
    """Ours and plain in turn, after one unmeasured round unless there is to be only one. ValueError when the results differ."""
    case.prepare()
    if repeats > 1:
        case.ours(), case.plain()
    pairs = [(seconds(case.ours), seconds(case.plain)) for _ in range(repeats)]
    difference = case.differ(pairs[0][0][1], pairs[0][1][1])
    if not difference <= case.tolerance:
        raise ValueError(f"{case.name}: results differ by {difference}, so their times cannot be compared")
    ours, plain = ([pair[side][0] for pair in pairs] for side in (0, 1))
    return Row(case.name, median(ours), median(plain), [b / a for a, b in zip(ours, plain, strict=True)], difference, case.bar)


def pictures(folder: Path) -> list[Record]:
    """Eight of each class, 1024 px a side, made in `folder` if they are not there."""
    if not (folder / "pictures").is_dir():
        build_pictures(["--out", str(folder / "pictures"), "--size", "1024", "--per_class", "8", "--workers", "1"])
    return read_split(folder / "pictures", "train")


def cases(size: str, folder: Path, lengths: Sequence[int]) -> Iterator[Case]:
    """All cases of a network of `size`."""
    records = pictures(folder)
    by_class = {label: [record for record in records if record.label is label] for label in Label}
    turns = [by_class[label][i] for i in range(8) for label in Label]
    pipe = build(size, folder / size)
    yield from reading_cases(pipe, by_class[Label.TAMPERED][0], lengths, BARS)
    yield from training_cases(pipe, by_class, BARS)
    yield from validation_cases(pipe, turns, (1, 4, 16), BARS)
    yield from loading_cases(pipe, turns, BARS)
    yield from epoch_cases(pipe, turns[:12], folder / size, BARS)


def peak() -> float:
    """Peak resident megabytes of this process since it began: getrusage also counts what its parent held when it was forked."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def memory(args: argparse.Namespace, folder: Path, name: str) -> tuple[float, float]:
    """Peak resident megabytes of two processes, each of which runs one side of the case once."""
    peaks = []
    for side in ("ours", "plain"):
        argv = ["--size", args.size, "--folder", folder, "--lengths", *args.lengths, "--peak", name, side]
        done = subprocess.run([sys.executable, "-m", "benchmarks.run", *map(str, argv)], capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout.split()[-1]))
    return peaks[0], peaks[1]


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| case | ours, s | baseline, s | ratio | bar | peak MB, ours / baseline |", "|---|---|---|---|---|---|"]
    for row in rows:
        ratio = f"{row.ratio:.1f} [{min(row.ratios):.1f}, {max(row.ratios):.1f}]"
        peak = "" if row.megabytes is None else f"{row.megabytes[0]:.0f} / {row.megabytes[1]:.0f}"
        lines.append(f"| {row.case} | {row.ours:.3f} | {row.plain:.3f} | {ratio} | {row.bar or ''} | {peak} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="medium")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--lengths", type=int, nargs="*", default=[64], help="tokens of the answers; 512 takes the baseline minutes each time")
    parser.add_argument("--floors", action="store_true", help="also count operations and bytes, and say what takes most")
    parser.add_argument("--memory", action="store_true", help="also run each side in a process of its own")
    parser.add_argument("--folder", type=Path, help="where networks and pictures are kept; default: a temporary one")
    parser.add_argument("--out", type=Path, help="folder for speed.md and speed.json")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        chosen = (case for case in cases(args.size, folder, args.lengths) if args.only in case.name)
        if args.peak:
            (case,) = [case for case in chosen if case.name == args.peak[0]]
            case.prepare()
            getattr(case, args.peak[1])()
            sys.stdout.write(f"{peak()}\n")
            return 0
        rows, floors = [], []
        for case in chosen:
            rows.append(measure(case, 1 if "512" in case.name else args.repeats))
            if args.floors and case.model:
                floors.append((case.name, rows[-1].ours, floor.measure(case)))
            if args.memory and "512" not in case.name:
                rows[-1].megabytes = memory(args, folder, case.name)
            sys.stderr.write(table(rows[-1:]).splitlines()[-1] + "\n")
    report = table(rows)
    if args.floors:
        best = floor.machine()
        report += f"\n{best.flops / 1e9:.0f} GFLOP/s, {best.bandwidth / 1e9:.1f} GB/s\n\n{floor.table(floors, best)}"
    sys.stdout.write(f"{torch.get_num_threads()} threads, fp32\n\n{report}")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "speed.md").write_text(report)
        (args.out / "speed.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
