"""The mean of several trainings of one network: it keeps what each learned and evens out what one alone took for a rule (Wortsman et al. 2022).

    python -m utils.train.average --versions runs/first runs/second --out runs/mean
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from model.checkpoint import load_pretrained, read_config, save_pretrained


def average(folders: Sequence[Path], out: Path) -> None:
    """Write to `out` a checkpoint whose weights are the mean of those in `folders`, in the first one's precision; calibration does not carry over.

    Raises ValueError for fewer than two, or for one that is not of the first one's shape; FileNotFoundError for what is no checkpoint.
    """
    if len(folders) < 2:
        raise ValueError(f"--versions has {len(folders)} folder: expected at least two to take the mean of")
    model, tokenizer = load_pretrained(folders[0], cls_temperature=1.0, calibrated_on=0)
    mean = model.state_dict()
    with torch.no_grad():
        for folder in folders[1:]:
            other = load_pretrained(folder)[0].state_dict()
            differing = [name for name in sorted({*mean, *other}) if name not in mean or name not in other or mean[name].shape != other[name].shape]
            if differing:
                raise ValueError(f"{folder} is of another shape than {folders[0]}, e.g. in {differing[0]}: expected trainings of one network")
            for name, weight in mean.items():
                weight += other[name]
        for weight in mean.values():
            weight /= len(folders)
    save_pretrained(model, tokenizer, out, dtype=read_config(folders[0]).dtype, args={"versions": list(map(str, folders))})


def main(argv: Sequence[str] | None = None) -> int:
    """Average from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=Path, nargs="+", required=True, help="checkpoint folders")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args(argv)
    try:
        average(args.versions, args.out)
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
