"""Descriptions of tampered pictures cut to what is hard about them, the place and the kind: "upper left, splicing".

In a whole description few words depend on the picture, and a small model learns the wording long before it looks. Brief ones come first;
`--mixed` lies between them and whole ones, which alone would make it forget: each tampered picture in three lengths.

    python -m utils.data.brief --dataset_dir data/SID_Mini --out data/SID_Mini/brief.jsonl
    python -m utils.data.brief --dataset_dir data/SID_Mini --out data/SID_Mini/mixed.jsonl --mixed

Pictures that are not tampered say nothing in a brief manifest and cost as much: `--others 4` keeps one in four. `--kind` leaves the place out, for
trainings that `--turn` pictures, which makes places untrue.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from model.types import Label
from utils.data.describe import COLUMNS, ROWS
from utils.data.explanation import parse
from utils.data.records import Record
from utils.data.sid_set import list_splits, read_split


def brief(description: str) -> str | None:
    """Place and kind; None when the description lacks one."""
    told = parse(description)
    places = [f"{row} {column}" for row in ROWS for column in COLUMNS if f"{row} {column}" in told.areas]
    return f"{places[0]}, {told.type}" if places and told.type else None


def kind(description: str) -> str | None:
    """The kind alone; None when the description has none."""
    return parse(description).type or None


def lengths(description: str) -> list[str]:
    """The description whole, up to its areas, and brief; those that it has the fields for."""
    return list(dict.fromkeys(filter(None, [description, description.partition(" Tampered Content:")[0], brief(description)])))


def _texts(record: Record, split: str, form: str) -> Sequence[str | None]:
    if record.label is not Label.TAMPERED or not record.description:
        return [record.description if form == "mixed" else None]
    if form != "mixed":
        return [{"brief": brief, "kind": kind}[form](record.description)]
    return lengths(record.description) if split == "train" else [record.description]


def write(dataset_dir: Path, out: Path, form: str = "brief", others: int = 1) -> int:
    """A manifest of its pictures, only tampered ones described, briefly; returns how many descriptions it has. Errors as of `read_split`.

    form: "brief", place and kind; "kind" alone; "mixed": every description, those of tampered training pictures in all `lengths`, a line each.
    others: of each class but tampered, one training picture in so many.
    """
    rows = []
    for split in list_splits(dataset_dir):
        passed: Counter[Label] = Counter()
        for record in read_split(dataset_dir, split, descriptions=True):
            passed[record.label] += 1
            if split == "train" and record.label is not Label.TAMPERED and passed[record.label] % others:
                continue
            image, mask = (path and os.path.relpath(path, out.parent) for path in (record.image, record.mask))
            row = {"image": image, "mask": mask, "label": record.label.title, "split": split}
            rows += [row | ({"description": text} if text else {}) for text in _texts(record, split, form)]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return sum("description" in row for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the manifest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True, help="SID_Mini, or another set in the Drive layout with structured descriptions")
    parser.add_argument("--out", type=Path, required=True, help="a .jsonl file, for --dataset_dir of train_SIDA.py")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--mixed", dest="form", action="store_const", const="mixed", help="whole descriptions of all classes, tampered ones in three lengths")
    form.add_argument("--kind", dest="form", action="store_const", const="kind", help="the kind without the place")
    parser.set_defaults(form="brief")
    parser.add_argument("--others", type=int, default=1, metavar="N", help="of real and synthetic training pictures, one in so many (1)")
    args = parser.parse_args(argv)
    if args.others < 1:
        parser.error(f"--others {args.others}: expected 1, all of them, or more")
    try:
        described = write(args.dataset_dir, args.out, args.form, args.others)
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    sys.stdout.write(f"{args.out}: {described} descriptions\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
