"""Many pictures in one run of predict.py beside one run for each: model time, the whole time, and whether the records are the same.

    python -m benchmarks.many --pictures 64 --out docs/benchmarks
    python -m benchmarks.many --one_process --precision fp32    # on a GPU, whose start and first pictures would drown the rest
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.data.sid_set import read_split
from utils.infer.pipeline import choose_device

OWN = ("milliseconds", "time")  # of `run`: what is a run's own
CLOSE = 1e-4  # of a probability: sums in a batch are taken in another order
BATCH = 8  # of predict.py


def predict(pictures: Sequence[Path], version: str, precision: str, views: int, out: Path, batch_size: int = BATCH) -> tuple[float, list[dict[str, Any]]]:
    """Seconds of the whole process and its records, by name."""
    start = time.perf_counter()
    how = ["--version", version, "--precision", precision, "--views", str(views), "--out", str(out), "--batch_size", str(batch_size)]
    subprocess.run([sys.executable, "predict.py", *map(str, pictures), *how], check=True, capture_output=True)
    seconds = time.perf_counter() - start
    records = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    return seconds, sorted(records, key=lambda record: record["file"]["name"])


def difference(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two records differ, floats by more than CLOSE."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one if key not in OWN for found in difference(one[key], other[key], f"{path}.{key}")]
    same = abs(one - other) <= CLOSE if isinstance(one, float) and isinstance(other, float) else one == other
    return [] if same else [f"{path}: {one} against {other}"]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write many.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", default=64, type=int, metavar="N", help="of the split, spread over the classes (64)")
    parser.add_argument("--dataset_dir", default="data/SID_Mini", metavar="DIR", help="(data/SID_Mini)")
    parser.add_argument("--split", default="validation", metavar="NAME", help="(validation)")
    parser.add_argument("--version", default="ck/SIDA-tiny", metavar="CKPT", help="(ck/SIDA-tiny)")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], metavar="P", help="(fp32 bf16)")
    parser.add_argument("--views", type=int, nargs="+", default=[4, 1], metavar="V", help="looks at a picture (4 1)")
    parser.add_argument("--one_process", action="store_true", help="single pictures too in one run, in batches of one; a first batch counts for nothing")
    parser.add_argument("--out", default=Path("docs/benchmarks"), type=Path, metavar="DIR", help="(docs/benchmarks)")
    args = parser.parse_args(argv)
    records = read_split(args.dataset_dir, args.split)
    warm = BATCH if args.one_process else 0
    if not 0 < args.pictures <= len(records) - warm:
        raise SystemExit(f"--pictures {args.pictures}: {args.dataset_dir} has 1 to {len(records) - warm}")
    args.out.mkdir(parents=True, exist_ok=True)  # before the minutes that it takes
    count = args.pictures + warm
    pictures = sorted((Path(record.image) for record in records[:: len(records) // count][:count]), key=str)
    ways = [{"precision": precision, "views": views} for precision in args.precision for views in args.views]
    runs = [way | measure(pictures, args.version, warm=warm, **way) for way in ways]
    figures = {"device": choose_device(), "pictures": args.pictures, "runs": runs}
    text = json.dumps(figures, indent=1) + "\n"
    (args.out / "many.json").write_text(text)
    sys.stdout.write(text)


def measure(pictures: Sequence[Path], version: str, precision: str, views: int, warm: int = 0) -> dict[str, Any]:
    """Seconds of both ways, their ratios, and where their records differ; with `warm`, both in one process each, and not counting its first pictures."""
    groups = [pictures] if warm else [[picture] for picture in pictures]
    with tempfile.TemporaryDirectory() as folder:
        together, many = predict(pictures, version, precision, views, Path(folder) / "many")
        alone = [predict(group, version, precision, views, Path(folder) / str(i), batch_size=1) for i, group in enumerate(groups)]
    many, singles = many[warm:], [record for _, records in alone for record in records][warm:]
    model = {name: sum(record["run"]["milliseconds"] for record in records) / 1000 for name, records in (("many", many), ("single", singles))}
    process = {"many": together, "single": sum(seconds for seconds, _ in alone)}
    return {
        "model_seconds": model,
        "model_ratio": model["single"] / model["many"],
        "process_seconds": process,
        "process_ratio": process["single"] / process["many"],
        "differences": [found for one, other in zip(many, singles, strict=True) for found in difference(one, other, one["file"]["name"])],
    }


if __name__ == "__main__":
    main()
