"""A third opinion: what a picture's noise tells, pixel by pixel, beside what the language model makes of blocks of JPEG and a small CLIP of content.

Its class logits are added to theirs, as those of the content expert (model/content.py). It sees no further than 67
pixels, so it has no subject to know by heart.

Dimensions: B images, S side of the pixels given, C channels of a patch of 8 x 8 pixels, D width of the vision tower, whose features stand beside its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.types import CLIP_MEAN, CLIP_STD
from model.vision import FILTERS, grey_levels

CHANNELS = (32, 32, 64, 80)  # at a half, a half, a quarter and an eighth of the pixels
SOFT = 2.0  # grey levels of residual that count half
TOP = 0.02  # share of patches whose mean stands for what is most unlike the rest
STATES = 3  # of a picture: its patches' mean, their standard deviation, what is most unlike the mean


def convolution(into: int, out: int, stride: int = 1, dilation: int = 1, *, norm: bool) -> nn.Sequential:
    """3x3; `norm` is for training and folded into it afterwards."""
    layer = nn.Conv2d(into, out, 3, stride, padding=dilation, dilation=dilation, bias=not norm)
    return nn.Sequential(layer, nn.BatchNorm2d(out)) if norm else nn.Sequential(layer)


class Around(nn.Module):
    """x plus two 3x3 convolutions of it; with a norm, it starts as x."""

    def __init__(self, width: int, dilation: int = 1, *, norm: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = (convolution(width, width, dilation=dilation, norm=norm) for _ in range(2))
        if norm:
            nn.init.zeros_(self.conv2[1].weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, h, w] -> the same, at least 0."""
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


class NoiseExpert(nn.Module):
    """A small convolutional network on noise residuals at full size, and a class head. What it sees and what it says are apart, as in ContentExpert."""

    rows = 1  # of features

    def __init__(self, width: int, channels: Sequence[int] = CHANNELS, hidden: int = 64, *, norm: bool = False) -> None:
        super().__init__()
        self.width, self.sizes = width, {"channels": list(channels), "hidden": hidden}
        first, half, quarter, eighth = channels
        self.body = nn.Sequential(
            convolution(len(FILTERS["residual"]), first, 2, norm=norm),
            nn.ReLU(),
            convolution(first, half, norm=norm),
            nn.ReLU(),
            convolution(half, quarter, 2, norm=norm),
            nn.ReLU(),
            Around(quarter, norm=norm),
            convolution(quarter, eighth, 2, norm=norm),
            nn.ReLU(),
            Around(eighth, norm=norm),
            Around(eighth, 2, norm=norm),
        )
        self.summary = nn.Linear(STATES * eighth, hidden)
        self.head = nn.Linear(hidden, 3)

    @property
    def eyes(self) -> nn.Module:
        """What `see` depends on."""
        return nn.ModuleList([self.body, self.summary])

    def patches(self, levels: Tensor) -> Tensor:
        """Grey levels 0..255 [B, 3, S, S] -> [B, C, S/8, S/8]."""
        with torch.autocast(levels.device.type, enabled=False):
            residual = F.conv2d(levels.float().contiguous(memory_format=torch.channels_last), FILTERS["residual"].to(levels.device), padding=2)
            soft = residual.div_(residual.abs().add_(SOFT))
        return self.body(soft.to(self.head.weight.dtype))

    def picture(self, patches: Tensor) -> Tensor:
        """[B, C, n, n] -> [B, hidden]."""
        mean = patches.mean(dim=(2, 3))
        odd = (patches - mean[..., None, None]).flatten(2)
        spread = (odd.float().square().mean(dim=2) + 1e-6).sqrt()
        most = odd.topk(max(1, round(TOP * odd.shape[2])), dim=2).values.mean(dim=2)
        return F.relu(self.summary(torch.cat([mean, spread.to(mean.dtype), most], dim=1)))

    def see(self, images_clip: Tensor) -> Tensor:
        """[B, 3, S, S] CLIP-normalised pixels of any size -> [B, 1, D]."""
        levels = grey_levels(images_clip, [255 * x for x in CLIP_MEAN], [255 * x for x in CLIP_STD])
        seen = self.picture(self.patches(levels))
        return F.pad(seen, (0, self.width - seen.shape[1]))[:, None]

    def forward(self, seen: Tensor) -> Tensor:
        """[B, 1, D] -> [B, 3] class logits."""
        return self.head(seen[:, 0, : self.head.in_features].to(self.head.weight.dtype))
