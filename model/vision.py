"""The vision tower: CLIP's, with a TraceStem in place of the patch embedding where its configuration has a `stem`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from model.echoes import ECHOES, YCBCR, echoes
from model.types import CLIP_MEAN, CLIP_STD

BLOCK = 8  # of JPEG, pixels
# noise residuals of the rich models (Fridrich and Kodovsky 2012): differences of order one and two, square 3x3 and square 5x5
RESIDUALS = (
    [[0, 0, 0], [0, -1, 1], [0, 0, 0]],
    [[0, 1, 0], [0, -1, 0], [0, 0, 0]],
    [[0, 0, 0], [1, -2, 1], [0, 0, 0]],
    [[0, 1, 0], [0, -2, 0], [0, 1, 0]],
    [[-1, 2, -1], [2, -4, 2], [-1, 2, -1]],
    [[-1, 2, -2, 2, -1], [2, -6, 8, -6, 2], [-2, 8, -12, 8, -2], [2, -6, 8, -6, 2], [-1, 2, -2, 2, -1]],
)


def _residual_filters() -> Tensor:
    """[2 * 6, 3, 5, 5]: each residual of green, then each of red minus blue."""
    kernels = [torch.tensor(kernel, dtype=torch.float32) for kernel in RESIDUALS]
    stacked = torch.stack([F.pad(k / k.abs().max(), [(5 - len(k)) // 2] * 4) for k in kernels])
    return torch.cat([stacked[:, None] * torch.tensor(colour).view(3, 1, 1) for colour in ([0.0, 1.0, 0.0], [1.0, 0.0, -1.0])])


def _dct_filters() -> Tensor:
    """[3 * 64, 3 * 8 * 8]: JPEG's orthonormal DCT of a block, luminance first, then the two chrominances."""
    k = torch.arange(BLOCK, dtype=torch.float32)
    basis = torch.cos((2 * k + 1) * k[:, None] * math.pi / (2 * BLOCK)) / 2
    basis[0] /= math.sqrt(2)
    return torch.einsum("kc,ux,vy->kuvcxy", torch.tensor(YCBCR), basis, basis).flatten(3).flatten(0, 2)


FILTERS = {"dct": _dct_filters(), "residual": _residual_filters()}
TRACES = len(FILTERS["dct"]) + 2 * len(FILTERS["residual"])
# The lowest frequencies of luminance but the mean, where a JPEG leaves most coefficients, and the steps that qualities 70 to 98 quantise them by
LOW = sorted(range(1, 64), key=lambda i: (i // BLOCK + i % BLOCK, i))[:15]
STEPS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 17, 20)
PHASES = len(LOW) * len(STEPS)
LARGEST = 60  # of the logits of copies, whose mean stands for the picture; a copy of the least size, 2 % of 384 x 384 pixels, has 46 places


def _dct(levels: Tensor, filters: Tensor) -> Tensor:
    """[B, 3, S, S] -> [B, 192, S / 8, S / 8]. A matrix product: a GPU rounds a convolution's factors to TF32, which phases do not bear."""
    blocks = levels.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).permute(0, 2, 4, 1, 3, 5).flatten(3)
    return (blocks @ filters.T).permute(0, 3, 1, 2)


def _phases(dct: Tensor) -> Tensor:
    """Coefficients [B, 64 or more, h, w] -> [B, PHASES, h, w] in 0..1: how far each of LOW is from a multiple of each of STEPS, 0 on it, 1 halfway.

    Their mean over a region is (1 - c) / 2, c the real part of the histogram's characteristic function at 1 / step. It is small where an earlier
    JPEG of that step left its grid, and less so where something was pasted, moved or painted: double compression
    (Popescu and Farid 2004; Fan and de Queiroz 2003).
    """
    steps = torch.tensor(STEPS, device=dct.device).view(-1, 1, 1)
    return (0.5 - torch.cos(dct[:, LOW, None] * (2 * math.pi / steps)) / 2).flatten(1, 2)


@torch.no_grad()
def traces(levels: Tensor, phases: bool = False) -> Tensor:
    """Grey levels 0..255 [B, 3, S, S] -> fp32 [B, TRACES, S / 8, S / 8]: what compression and resampling left in each block of JPEG.

    log(1 + x) of the magnitudes of the block's DCT, and of the mean and the root mean square of each noise residual in it; with `phases`,
    PHASES more.
    """
    filters = {name: kernel.to(levels.device) for name, kernel in FILTERS.items()}
    found = []
    for few in levels.float().contiguous(memory_format=torch.channels_last).split(4):  # a CPU's caches hold so many; that layout halves the time
        dct, residual = _dct(few, filters["dct"]), F.conv2d(few, filters["residual"], padding=2)
        earlier = [_phases(dct)] if phases else []
        mean = F.avg_pool2d(residual.abs_(), BLOCK)
        magnitudes = (dct.abs_(), mean, F.avg_pool2d(residual.square_(), BLOCK).sqrt_())
        found.append(torch.cat([*(x.log1p_() for x in magnitudes), *earlier], dim=1))
    return torch.cat(found)


def grey_levels(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """[B, 3, S, S] normalised by `mean` and `std` of grey levels -> those, 0..255. Rounding to whole ones takes back what half precision did."""
    means, stds = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (mean, std))
    return (pixels.float() * stds + means).round()


class ResidualBlock(nn.Module):
    """x plus two 3x3 convolutions of it; starts as x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, h, w] -> the same."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Echoed(nn.Module):
    """Grey levels [B, 3, S, S] -> [B, out, S/16, S/16]: a direction as far as a patch shows what is seen elsewhere too, another as far as any does."""

    def __init__(self, out: int, width: int = 16) -> None:
        super().__init__()
        wide = [layer for _ in range(2) for layer in (nn.Conv2d(width, width, 5, padding=2), nn.ReLU())]
        self.where = nn.Sequential(nn.Conv2d(ECHOES, width, 3, padding=1), nn.ReLU(), *wide, nn.Conv2d(width, 1, 5, padding=2))
        self.directions = nn.Parameter(torch.zeros(2, out))

    def logits(self, levels: Tensor) -> Tensor:
        """[B, S/8, S/8] of the same: whether a copy is there."""
        return self.where(echoes(levels).to(self.directions.dtype))[:, 0]

    def forward(self, levels: Tensor) -> Tensor:
        """As the class says."""
        logits = self.logits(levels)
        patch, picture = F.avg_pool2d(logits.sigmoid()[:, None], 2), self.picture(logits).sigmoid().view(-1, 1, 1, 1)
        here, anywhere = self.directions.view(2, -1, 1, 1)
        return patch * here + picture * anywhere

    @staticmethod
    def picture(logits: Tensor) -> Tensor:
        """[B, n, n] of places -> [B] of pictures: the mean of the LARGEST."""
        return logits.flatten(1).topk(LARGEST).values.mean(dim=1)


class TraceStem(nn.Module):
    """Normalised pixels [B, 3, S, S] -> [B, out, S/16, S/16]: `traces` through `depth` residual blocks, in place of a patch embedding.

    The filters are fixed. Learned ones need ten times the pictures: what was tampered with shows in magnitudes far below the content's,
    which half precision and a few thousand steps do not find. The blocks see how a place differs from its picture, not which picture it is;
    what the picture is like as a whole is added at the end, equally everywhere. `mean` and `std`, of grey levels, undo the normalisation.
    With `phases` it is given those of `traces` as well; with `echoes` it says where the picture shows what it shows elsewhere.
    """

    def __init__(self, width: int, depth: int, out: int, mean: Sequence[float], std: Sequence[float], phases: bool = False, echoes: bool = False) -> None:
        super().__init__()
        self.mean, self.std, self.phases = mean, std, phases
        count = TRACES + PHASES * phases
        self.inward = nn.Conv2d(count, width, 3, padding=1)
        self.blocks = nn.Sequential(*[ResidualBlock(width) for _ in range(depth)])
        self.outward = nn.Conv2d(width, out, 3, stride=2, padding=1)
        self.overall = nn.Sequential(nn.Linear(2 * count, width), nn.ReLU(), nn.Linear(width, out))
        self.echoed = Echoed(out) if echoes else None
        self.reset_parameters()

    @property
    def weight(self) -> Tensor:
        """Stands for the dtype, as a patch embedding's does."""
        return self.inward.weight

    def levels(self, pixels: Tensor) -> Tensor:
        """Normalised pixels -> grey levels 0..255."""
        return grey_levels(pixels, self.mean, self.std)

    def forward(self, pixels: Tensor) -> Tensor:
        """As the class says."""
        levels = self.levels(pixels)
        with torch.autocast(pixels.device.type, enabled=False):
            seen = traces(levels, self.phases)
            average = seen.mean(dim=(2, 3), keepdim=True)
            odd = seen - average
            spread = (odd.square().sum(dim=(2, 3), keepdim=True) / (odd[0, 0].numel() - 1)).sqrt()
            whole = torch.cat([average, spread], dim=1)[..., 0, 0].to(self.weight.dtype)
            odd = odd.to(self.weight.dtype)
        patches = self.outward(F.relu(self.blocks(self.inward(odd)))) + self.overall(whole)[..., None, None]
        return patches if self.echoed is None else patches + self.echoed(levels)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """PyTorch's initial weights, residual blocks as identities."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.reset_parameters()
        for block in self.blocks:
            block.conv2.weight.zero_()


class VisionTower(CLIPVisionModel):
    """CLIP's vision transformer; `stem` in its configuration gives `width` and `depth` of a TraceStem."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__(config)
        if getattr(config, "stem", None):
            levels = [255 * x for x in CLIP_MEAN], [255 * x for x in CLIP_STD]
            self.embeddings.patch_embedding = TraceStem(**config.stem, out=config.hidden_size, mean=levels[0], std=levels[1])
