"""The vision tower: CLIP's, with small convolutions in place of the one patch embedding where its configuration names a `stem`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

# noise residuals of the rich models (Fridrich and Kodovsky 2012): differences of order one and two, square 3x3 and square 5x5
RESIDUALS = (
    [[0, 0, 0], [0, -1, 1], [0, 0, 0]],
    [[0, 1, 0], [0, -1, 0], [0, 0, 0]],
    [[0, 0, 0], [1, -2, 1], [0, 0, 0]],
    [[0, 1, 0], [0, -2, 0], [0, 1, 0]],
    [[-1, 2, -1], [2, -4, 2], [-1, 2, -1]],
    [[-1, 2, -2, 2, -1], [2, -6, 8, -6, 2], [-2, 8, -12, 8, -2], [2, -6, 8, -6, 2], [-1, 2, -2, 2, -1]],
)
GAIN = 4.0  # residuals of a photograph are about a twentieth of its contrast


class ConvStem(nn.Sequential):
    """[B, 3, S, S] normalised pixels -> [B, width, S / 2^n, S / 2^n], n = len(widths).

    Convolutions learn local traces (resampling, compression, noise) from far fewer pictures than a patch embedding does (Xiao et al.
    2021, arXiv:2106.14881); the first one starts as noise residuals of green and of red against blue, as forensic networks' do.
    """

    def __init__(self, widths: Sequence[int], width: int) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 5, padding=2), nn.ReLU()]
        for a, b in zip(widths, (*widths[1:], width), strict=True):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU()]
        super().__init__(*layers[:-1])
        self.reset_parameters()

    def forward(self, pixels: Tensor) -> Tensor:
        """As the class says. Channels last: half the time on a CPU."""
        return super().forward(pixels.contiguous(memory_format=torch.channels_last))

    @property
    def weight(self) -> Tensor:
        """Of the first convolution; stands for the dtype, as a patch embedding's does."""
        return self[0].weight

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initial weights: residual filters first, He's for the rest."""
        for layer in self:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        filters = [(kernel, colours) for kernel in RESIDUALS for colours in ((0.0, 1.0, 0.0), (1.0, 0.0, -1.0))]
        for weight, (kernel, colours) in zip(self.weight, filters, strict=False):
            taps = torch.tensor(kernel, dtype=weight.dtype)
            pad = (5 - len(taps)) // 2
            residual = GAIN * nn.functional.pad(taps / taps.abs().max(), [pad] * 4)
            weight.copy_(torch.tensor(colours, dtype=weight.dtype)[:, None, None] * residual)


class VisionTower(CLIPVisionModel):
    """CLIP's vision transformer; `stem` in its configuration gives the widths of a ConvStem."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__(config)
        if getattr(config, "stem", None):
            self.embeddings.patch_embedding = ConvStem(config.stem, config.hidden_size)
