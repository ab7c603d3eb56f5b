"""Where a picture shows the same thing twice: dense matching of a picture with itself.

Every place is described by circular harmonics of its neighbourhood, whose magnitudes do not change when it is turned or mirrored, and looks for the
place far from it that is most alike. Where a part was copied, what lies around finds places that lie likewise; anywhere else matches scatter
(Cozzolino, Poggi and Verdoliva 2015, "Efficient dense-field copy-move forgery detection").
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

YCBCR = ([0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312])  # of red, green, blue (JFIF)
RADIUS = 6  # of a neighbourhood, in pixels of the picture at half its size, as RINGS
RINGS, WIDTH = (0.0, 2.4, 4.5), 1.2
ORDERS = 4
# One over what compression and resampling change in true copies: per colour, for a ring's mean and for its other harmonics
COLOURS, MEAN, OTHERS = (1.0, 5.0, 5.0), 0.8, (1.4, 2.1, 2.6)
KEY, QUERY = 4, 8  # pixels from one place to the next that is found, that looks
FAR = 40  # pixels; nearer places are alike anyway
LINES = 2  # of queries at a time on a CPU: their similarities to all keys of a picture of 384 pixels stay in its caches
LEAST = 64  # pixels a side; in a smaller picture nothing may be far away
LENGTHS = (0.55, 1.8)  # how far a copy may have been scaled
PAIRS = ((2, 1, 6.0), (2, 2, 6.0), (1, 1, 4.0))  # neighbours asked for agreement: how many each way, how many queries apart, within how many pixels
ECHOES = len(PAIRS) + 1


def _harmonics() -> Tensor:
    """[3 rings * ORDERS * 2, 1, 2 RADIUS + 1, 2 RADIUS + 1]: cosine and sine of each order around each ring."""
    axis = torch.arange(-RADIUS, RADIUS + 1.0)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    radius, angle = torch.hypot(x, y), torch.atan2(y, x)
    rings = [torch.exp(-(((radius - ring) / WIDTH) ** 2) / 2) * torch.sigmoid((RADIUS - radius) * 2) for ring in RINGS]
    waves = [wave(n * angle) for n in range(ORDERS) for wave in (torch.cos, torch.sin)]
    return torch.stack([ring / ring.sum() * wave for ring in rings for wave in waves])[:, None]


def _scales() -> Tensor:
    """[3, 3, ORDERS]: what each colour's, ring's and order's magnitude is multiplied by."""
    of_ring = torch.tensor([[MEAN, *[other] * (ORDERS - 1)] for other in OTHERS])
    return torch.tensor(COLOURS).view(3, 1, 1) * of_ring


HARMONICS, SCALES = _harmonics(), _scales()


def describe(levels: Tensor) -> Tensor:
    """Grey levels 0..255 [B, 3, S, S] -> [B, 36, S/4, S/4], in units of what a copy differs from its original by."""
    half = F.avg_pool2d(torch.einsum("kc,bcyx->bkyx", torch.tensor(YCBCR, device=levels.device), levels), 2)
    with torch.backends.cudnn.flags(allow_tf32=False):  # which would be more than copies differ by
        waves = F.conv2d(F.pad(half, [RADIUS] * 4, mode="reflect").flatten(0, 1)[:, None], HARMONICS.to(levels.device), stride=KEY // 2)
    waves = waves.unflatten(1, (len(RINGS), ORDERS, 2)).unflatten(0, (-1, 3))
    mean, others = waves[:, :, :, :1, 0], torch.hypot(waves[:, :, :, 1:, 0], waves[:, :, :, 1:, 1])
    return (torch.cat([mean, others], dim=3) * SCALES.to(levels.device)[..., None, None]).flatten(1, 3)


def matches(described: Tensor) -> tuple[Tensor, Tensor]:
    """[D, S/4, S/4] of one picture -> for every second place each way, where its like is, [2, S/8, S/8] in pixels, and how unlike that is, [S/8, S/8]."""
    step = QUERY // KEY
    looking, side = described[:, ::step, ::step], described.shape[-1]
    count, keys = looking.shape[-1], described.flatten(1)
    queries = looking.permute(1, 2, 0)
    places = torch.arange(side, device=keys.device) * KEY
    apart = (places[::step, None] - places).square()  # along one axis
    length, found = keys.square().sum(0) / 2, []
    lines = LINES if keys.device.type == "cpu" else count
    for top in range(0, count, lines):
        some = queries[top : top + lines].flatten(0, 1)
        alike = torch.addmm(-length, some, keys).view(-1, count, side, side)  # |q - k|^2 = |q|^2 - 2 alike
        around = slice(max(0, top * step - FAR // KEY), (top + lines) * step + FAR // KEY)
        near = apart[top : top + lines, None, around, None] + apart[:, None, :] < FAR**2
        alike[:, :, around].masked_fill_(near, -torch.inf)
        best, row = alike.flatten(0, 1).amax(2).max(1)
        found.append(torch.stack([best, row, alike.flatten(0, 1)[torch.arange(len(row)), row].argmax(1)]))
    best, row, column = torch.cat(found, dim=1)
    unlike = (looking.square().sum(0).flatten() - 2 * best).clamp(min=0).sqrt()
    return torch.stack([row, column]).view(2, count, count) * KEY, unlike.view(count, count)


def agreement(where: Tensor, neighbours: int, step: int, within: float) -> Tensor:
    """[B, 2, n, n] of `matches` -> [B, n, n]: how many pairs of opposite neighbours have matches opposite each other around one's own.

    Whatever is shifted, turned, mirrored and scaled keeps the middle of two places in the middle.
    """
    count, reach = where.shape[-1], neighbours * step
    padded = F.pad(where, [reach] * 4, mode="replicate")
    agree = torch.zeros_like(where[:, 0])
    for dy, dx in ((dy, dx) for dy in range(-reach, reach + 1, step) for dx in range(-reach, reach + 1, step) if (dy, dx) > (0, 0)):
        one, other = (padded[:, :, reach + s * dy : reach + s * dy + count, reach + s * dx : reach + s * dx + count] for s in (1, -1))
        bent = (one + other - 2 * where).square().sum(1)
        length = (one - other).square().sum(1).sqrt() / (2 * QUERY * math.hypot(dy, dx))
        agree += (bent <= within**2) & (length > LENGTHS[0]) & (length < LENGTHS[1])
    return agree


@torch.no_grad()
def echoes(levels: Tensor) -> Tensor:
    """Grey levels 0..255 [B, 3, S, S] -> fp32 [B, ECHOES, S/8, S/8].

    log(1 + x) of how many neighbours agree on a copy, for each of PAIRS, and of how unlike the match is. ValueError for fewer than LEAST pixels a side.
    """
    if levels.shape[-1] < LEAST:
        raise ValueError(f"pictures of {levels.shape[-1]} pixels a side: expected at least {LEAST} to look for echoes in, or a stem without them")
    with torch.autocast(levels.device.type, enabled=False):
        found = [matches(described) for few in levels.float().split(4) for described in describe(few)]
        where, unlike = (torch.stack(maps) for maps in zip(*found, strict=True))
        return torch.cat([torch.stack([agreement(where, *pairs) for pairs in PAIRS], dim=1), unlike[:, None]], dim=1).log1p_()
