"""What the description stage taught one network, given to another: the difference that it made is added (task arithmetic, Ilharco et al. 2023).

    python -m utils.train.transfer --version ck/SIDA-tiny --before runs/tiny-small --after runs/tiny-small-description/merged --out runs/large-init

The stage costs what a picture's patches cost. A network for small pictures learns it first; one for larger pictures that was made from it
(`utils.train.enlarge`) takes it over. Its words come out in pieces then, and need a short stage of their own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from model.checkpoint import load_for_training, load_pretrained, save_pretrained
from utils.train.stages import LANGUAGE, STAGES

TAUGHT = (*STAGES["description"].trainable, *LANGUAGE, "embed_tokens")


@torch.no_grad()
def transfer(version: str | Path, before: str | Path, after: str | Path, out: str | Path) -> Path:
    """Write the SIDA checkpoint `version`, plus what the description stage made of `before` (`after`), to `out`; encoders stay.

    ValueError when the three differ in more than their encoders' sizes.
    """
    model, tokenizer = load_for_training(version, "description")
    was = load_for_training(before, "description")[0].state_dict()
    became = load_pretrained(after)[0].state_dict()
    for name, weight in model.state_dict().items():
        if "vision_tower" in name or not any(f"{family}." in name for family in TAUGHT):
            continue
        shapes = [tuple(state[name].shape) if name in state else None for state in (model.state_dict(), was, became)]
        if len(set(shapes)) > 1:
            raise ValueError(f"{name} is {shapes} in {version}, {before} and {after}: expected networks that differ in their encoders' sizes alone")
        weight += became[name] - was[name]
    return save_pretrained(model, tokenizer, out, dtype=model.config.dtype)


def main(argv: Sequence[str] | None = None) -> int:
    """Transfer from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", required=True, help="checkpoint that is to learn it")
    parser.add_argument("--before", required=True, help="checkpoint that the description stage began with")
    parser.add_argument("--after", required=True, help="what came out of it")
    parser.add_argument("--out", required=True, help="folder to write")
    args = parser.parse_args(argv)
    try:
        transfer(args.version, args.before, args.after, args.out)
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
