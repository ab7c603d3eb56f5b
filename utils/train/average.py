"""The mean of networks that came from one another (model soups, Wortsman et al. 2022; of a network and what a course made of it: WiSE-FT, the same year).

    python -m utils.train.average --versions runs/tiny-sida/merged runs/tiny-worn/merged --out runs/tiny-mean

A course on worn pictures takes a little of what a network knew about pictures as they are. The mean keeps that, and most of what the course taught.
A checkpoint that is named twice counts twice.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from model.checkpoint import load_pretrained, save_pretrained


@torch.no_grad()
def average(versions: Sequence[str | Path], out: str | Path) -> Path:
    """Write the first of the checkpoints `versions`, each weight the mean of all, to `out`. Its temperature has to be fitted again.

    ValueError for fewer than two, or when weights differ in name or shape.
    """
    if len(versions) < 2:
        raise ValueError(f"--versions: expected two checkpoints or more, got {[str(version) for version in versions]}")
    model, tokenizer = load_pretrained(versions[0])
    states = [model.state_dict(), *(load_pretrained(version)[0].state_dict() for version in versions[1:])]
    for version, state in zip(versions, states, strict=True):
        if other := [name for name in {**states[0], **state} if _shape(states[0], name) != _shape(state, name)]:
            name = other[0]
            raise ValueError(
                f"{name} is {_shape(states[0], name)} in {versions[0]} and {_shape(state, name)} in {version}: expected networks of the same sizes"
            )
    for name, weight in states[0].items():
        if weight.is_floating_point():
            weight.copy_(torch.stack([state[name] for state in states]).mean(dim=0))
    return save_pretrained(model, tokenizer, out, dtype=model.config.dtype, args={"averaged": [str(version) for version in versions]})


def _shape(state: dict[str, torch.Tensor], name: str) -> tuple[int, ...] | str:
    return tuple(state[name].shape) if name in state else "not there"


def main(argv: Sequence[str] | None = None) -> int:
    """Average from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", nargs="+", required=True, help="checkpoints")
    parser.add_argument("--out", required=True, help="folder to write")
    args = parser.parse_args(argv)
    try:
        average(args.versions, args.out)
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
