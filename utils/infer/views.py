"""Test-time augmentation: a picture is looked at upright and turned by quarter turns, and what is seen is averaged.

`SidaConfig.views` says how many looks a checkpoint takes; more than one is for those that were trained on turned pictures (--turn).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.types import Size


def turned_size(size: Size, quarters: int) -> Size:
    """(h, w) after so many quarter turns."""
    return size[::-1] if quarters % 2 else size


def turned(square: Tensor, size: Size, quarters: int) -> Tensor:
    """[..., S, S], a picture of `size` at its top left and zeros -> the same with the picture turned counter-clockwise."""
    if not quarters:
        return square
    picture = torch.rot90(square[..., : size[0], : size[1]], quarters, (-2, -1))
    side = square.shape[-1]
    return F.pad(picture, (0, side - picture.shape[-1], 0, side - picture.shape[-2]))


def upright(masks: Tensor, quarters: int) -> Tensor:
    """Mask logits [..., h, w] of a picture so `turned` -> of the picture as it was."""
    return torch.rot90(masks, -quarters, (-2, -1))


def average(rows: Tensor, views: int) -> Tensor:
    """[views * B, ...], every picture's first look, then every one's second, ... -> [B, ...]."""
    return rows.unflatten(0, (views, -1)).mean(dim=0)
