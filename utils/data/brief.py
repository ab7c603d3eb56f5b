"""Descriptions of tampered pictures cut to what is hard about them, the place and the kind: "upper left, splicing".

In a whole description few words depend on the picture, and a small model learns the wording long before it looks. Brief ones come first.

    python -m utils.data.brief --dataset_dir data/SID_Mini --out data/SID_Mini/brief.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from model.types import Label
from utils.data.describe import COLUMNS, ROWS
from utils.data.explanation import parse
from utils.data.sid_set import list_splits, read_split


def brief(description: str) -> str | None:
    """Place and kind; None when the description lacks one."""
    told = parse(description)
    places = [f"{row} {column}" for row in ROWS for column in COLUMNS if f"{row} {column}" in told.areas]
    return f"{places[0]}, {told.type}" if places and told.type else None


def write(dataset_dir: Path, out: Path) -> int:
    """A manifest of all of its pictures, only tampered ones described; returns how many are. Errors as of `read_split`."""
    rows = []
    for split in list_splits(dataset_dir):
        for record in read_split(dataset_dir, split, descriptions=True):
            image, mask = (path and os.path.relpath(path, out.parent) for path in (record.image, record.mask))
            row = {"image": image, "mask": mask, "label": record.label.title, "split": split}
            said = brief(record.description) if record.description and record.label is Label.TAMPERED else None
            rows.append(row | ({"description": said} if said else {}))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return sum("description" in row for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the manifest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True, help="SID_Mini, or another set in the Drive layout with structured descriptions")
    parser.add_argument("--out", type=Path, required=True, help="a .jsonl file, for --dataset_dir of train_SIDA.py")
    args = parser.parse_args(argv)
    try:
        described = write(args.dataset_dir, args.out)
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    sys.stdout.write(f"{args.out}: {described} pictures with a brief description\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
