"""The same network for pictures of another size, or with more layers in its encoders.

    python -m utils.train.enlarge --version ck/SIDA-tiny --side 384 --out runs/large-base
    python -m utils.train.enlarge --version ck/SIDA-tiny --layers 1 --out runs/deep-base

For another size position tables are interpolated (Dosovitskiy et al. 2021, section 3.2), all else stays; it has to be trained on such pictures before its
answers mean anything. A new layer comes last and starts as the identity (Chen et al. 2016, Net2Net), so nothing changes before it is trained.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.checkpoint import load_pretrained, save_pretrained, variant
from model.config import SidaConfig

CLASS_TOKEN = 1  # row of the tower's table that stands for no place
LAYER = re.compile(r"\.(?:encoder\.layers|image_encoder\.blocks)\.(\d+)\.")
ENDS = ("out_proj", "fc2", "attn.proj", "lin2")  # of a layer's two branches: zero there, and it is the identity


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


def deepened(config: SidaConfig, layers: int) -> dict[str, Any]:
    """Fields of both encoders' configurations with `layers` more; SAM's new ones attend to the whole picture."""
    depth = config.sam["depth"]
    sam = {"depth": depth + layers, "global_attn_indexes": [*config.sam["global_attn_indexes"], *range(depth, depth + layers)]}
    return {"clip": config.clip | {"num_hidden_layers": config.clip["num_hidden_layers"] + layers}, "sam": config.sam | sam}


def grown(name: str, weights: Mapping[str, Tensor]) -> Tensor:
    """The weight `name` of a new layer: the last old layer's, but zero where a branch ends."""
    start, end = LAYER.search(name).span(1)
    *_, last = (old for i in range(int(name[start:end])) if (old := f"{name[:start]}{i}{name[end:]}") in weights)
    return weights[last] * (not any(f".{part}." in name for part in ENDS))


@torch.no_grad()
def enlarge(version: str | Path, out: str | Path, side: int | None = None, layers: int = 0) -> Path:
    """Write the checkpoint `version`, both encoders for pictures of `side` pixels (None: as before) and with `layers` more, to `out`.

    ValueError for a side that is not whole patches of each, fewer than no layers, or more where the tower's last one is not what is looked at.
    """
    model, tokenizer = load_pretrained(version)
    side, patch = model.config.image_size if side is None else side, model.config.clip["patch_size"]
    if side <= 0 or side % patch or side % 16:
        raise ValueError(f"--side is {side}: expected a positive multiple of the patches' {patch} and 16 pixels")
    if layers < 0:
        raise ValueError(f"--layers is {layers}: expected 0 or more")
    if layers and model.config.mm_vision_select_layer != -1:
        raise ValueError(f"--layers is {layers}, but {version} looks at layer {model.config.mm_vision_select_layer} of its tower, not the last: expected 0")
    encoders = deepened(model.config, layers)
    fields = {**encoders, "image_size": side, "clip": encoders["clip"] | {"image_size": side}}
    if side != model.config.image_size:
        fields["views"] = 1  # it has not learned turned pictures of that size
    larger = variant(model, tokenizer, **fields)
    weights = model.state_dict()
    for name, tensor in larger.state_dict().items():
        tensor.copy_(stretched(name, weights[name] if name in weights else grown(name, weights), tensor.shape))
    return save_pretrained(larger, tokenizer, out, dtype=model.config.dtype)


def main(argv: Sequence[str] | None = None) -> int:
    """Enlarge from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", required=True, help="checkpoint to start from")
    parser.add_argument("--side", type=int, help="of the pictures, pixels (as they are)")
    parser.add_argument("--layers", type=int, default=0, help="more in each encoder (0)")
    parser.add_argument("--out", required=True, help="folder to write")
    args = parser.parse_args(argv)
    try:
        enlarge(args.version, args.out, args.side, args.layers)
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
