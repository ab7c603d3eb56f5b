"""The same network for pictures of another size: position tables are interpolated (Dosovitskiy et al. 2021, section 3.2), all else stays.

    python -m utils.train.enlarge --version ck/SIDA-tiny --side 384 --out runs/large-base

It has to be trained on such pictures before its answers mean anything.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from model.checkpoint import allocate, load_pretrained, save_pretrained
from model.config import SidaConfig

CLASS_TOKEN = 1  # row of the tower's table that stands for no place


def stretched(name: str, table: Tensor, shape: torch.Size) -> Tensor:
    """The weight `name` in another `shape`: the tower's positions [1 + n * n, D], SAM's [1, n, n, D], or its attention's relative [2 * n - 1, D]."""
    if table.shape == shape:
        return table
    if ".rel_pos_" in name:
        return F.interpolate(table.T[None], shape[0], mode="linear", align_corners=False)[0].T  # as SAM does
    if name.endswith("pos_embed"):
        return _stretched_grid(table, shape[1])
    old, new = (round((rows - CLASS_TOKEN) ** 0.5) for rows in (len(table), shape[0]))
    grid = _stretched_grid(table[CLASS_TOKEN:].reshape(1, old, old, -1), new)
    return torch.cat([table[:CLASS_TOKEN], grid.flatten(0, 2)])


def _stretched_grid(grid: Tensor, places: int) -> Tensor:
    """[1, n, n, D] -> [1, places, places, D]."""
    return F.interpolate(grid.permute(0, 3, 1, 2), (places, places), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)


@torch.no_grad()
def enlarge(version: str | Path, out: str | Path, side: int) -> Path:
    """Write the checkpoint `version`, both encoders for pictures of `side` pixels, to `out`. ValueError for a side that is not whole patches of each."""
    model, tokenizer = load_pretrained(version)
    patch = model.config.clip["patch_size"]
    if side <= 0 or side % patch or side % 16:
        raise ValueError(f"--side is {side}: expected a positive multiple of the patches' {patch} and 16 pixels")
    fields = {"image_size": side, "clip": model.config.clip | {"image_size": side}, "views": 1, "cls_temperature": 1.0, "calibrated_on": 0}
    larger = allocate(SidaConfig.from_dict(model.config.to_dict() | fields), tokenizer, torch.float32)
    weights = model.state_dict()
    for name, tensor in larger.state_dict().items():
        tensor.copy_(stretched(name, weights[name], tensor.shape))
    return save_pretrained(larger, tokenizer, out, dtype=model.config.dtype)


def main(argv: Sequence[str] | None = None) -> int:
    """Enlarge from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", required=True, help="checkpoint to start from")
    parser.add_argument("--side", type=int, required=True, help="of the pictures, pixels")
    parser.add_argument("--out", required=True, help="folder to write")
    args = parser.parse_args(argv)
    try:
        enlarge(args.version, args.out, args.side)
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
