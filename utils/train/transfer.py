"""What the description stage taught one network, given to another: the difference that it made is added (task arithmetic, Ilharco et al. 2023).

    python -m utils.train.transfer --version ck/SIDA-tiny --before runs/tiny-small --after runs/tiny-small-description/merged --out runs/large-init
    python -m utils.train.transfer --version ck/SIDA-tiny-description --encoders runs/tiny-worn/merged --out runs/description-init

The stage costs what a picture's patches cost. A network for small pictures learns it first; one for larger pictures that was made from it
(`utils.train.enlarge`) takes it over. Or one that has learned it is given the encoders of another that came from the same network and whose
pictures taught it more. Either way its words come out in pieces then, and need a short stage of their own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from model.checkpoint import load_for_training, load_pretrained, save_pretrained
from utils.train.stages import LANGUAGE, STAGES, VISION

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


@torch.no_grad()
def give_encoders(version: str | Path, donor: str | Path, out: str | Path) -> Path:
    """Write the SIDA checkpoint `version` with the encoders of `donor`, and how CLIP's is projected, to `out`; what `donor` lacks (echoes) stays.

    ValueError when they differ in size.
    """
    model, tokenizer = load_pretrained(version)
    mine, theirs = model.state_dict(), load_pretrained(donor)[0].state_dict()
    for name in (name for name in theirs if any(f"{family}." in name for family in VISION)):
        if name not in mine or mine[name].shape != theirs[name].shape:
            here = tuple(mine[name].shape) if name in mine else "not there"
            raise ValueError(f"{name} is {tuple(theirs[name].shape)} in {donor} and {here} in {version}: expected encoders of the same sizes")
        mine[name].copy_(theirs[name])
    return save_pretrained(model, tokenizer, out, dtype=model.config.dtype)


def main(argv: Sequence[str] | None = None) -> int:
    """Transfer from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", required=True, help="checkpoint that is to learn it")
    parser.add_argument("--before", help="checkpoint that the description stage began with")
    parser.add_argument("--after", help="what came out of it")
    parser.add_argument("--encoders", help="instead of those two: checkpoint whose encoders it is given")
    parser.add_argument("--out", required=True, help="folder to write")
    args = parser.parse_args(argv)
    if (args.before, args.after, args.encoders).count(None) != (2 if args.encoders else 1):
        parser.error("give --before and --after, or --encoders: what is to be transferred?")
    try:
        if args.encoders:
            give_encoders(args.version, args.encoders, args.out)
        else:
            transfer(args.version, args.before, args.after, args.out)
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
