"""The training losses. p is a predicted probability, t a target in 0..1; h x w differs from image to image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.types import SidaLosses

DICE_SCALE = 1000.0  # keeps the sums of an fp16 mask in range
EPS = 1e-6


@dataclass(frozen=True)
class LossWeights:
    """total = ce * CE + cls * CLS + mask * MASK, MASK = bce * BCE + dice * DICE.

    `shared_mask` repeats an accident of the original's first stage, whose BCE and DICE are one tensor:
    MASK = (BCE + DICE) * (bce + dice).
    """

    ce: float = 0.0
    cls: float = 1.0
    mask: float = 1.0
    bce: float = 1.0
    dice: float = 1.0
    shared_mask: bool = False

    def combine(self, ce: Tensor, cls: Tensor, mask_bce: Tensor, mask_dice: Tensor) -> SidaLosses:
        """The weighted total beside its unweighted parts."""
        mask = (mask_bce + mask_dice) * (self.bce + self.dice) if self.shared_mask else self.bce * mask_bce + self.dice * mask_dice
        total = self.cls * cls + self.mask * mask
        if self.ce:
            total = total + self.ce * ce
        return SidaLosses(total=total, ce=ce, cls=cls, mask_bce=mask_bce, mask_dice=mask_dice)


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """[n, h, w] logits and targets -> [n]: 1 - (2 sum(p t) + eps) / (sum(p) + sum(t) + eps), sums divided by 1000."""
    p, t = logits.sigmoid().flatten(1), target.flatten(1)
    overlap = 2 * (p / DICE_SCALE * t).sum(-1)
    total = (p / DICE_SCALE).sum(-1) + (t / DICE_SCALE).sum(-1)
    return 1 - (overlap + EPS) / (total + EPS)


def bce_loss(logits: Tensor, target: Tensor) -> Tensor:
    """[n, h, w] logits and targets -> [n]: binary cross-entropy, mean over pixels."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1).mean(1)


def mask_losses(logits: list[Tensor], targets: list[Tensor]) -> tuple[Tensor, Tensor]:
    """B x [n, h, w] logits and targets -> (bce, dice), means over all masks; zeros when there is none."""
    for i, (mask, target) in enumerate(zip(logits, targets, strict=True)):
        if mask.shape != target.shape:
            raise ValueError(
                f"image {i} of the batch has mask logits {tuple(mask.shape)} but a target {tuple(target.shape)}: expected one mask per [SEG], resized alike"
            )
    pairs = [(mask, target) for mask, target in zip(logits, targets, strict=True) if len(mask)]
    if not pairs:
        zero = torch.zeros((), device=targets[0].device)
        return zero, zero
    count = sum(len(mask) for mask, _ in pairs) + 1e-8
    bce = sum(bce_loss(mask, target).sum() for mask, target in pairs) / count
    dice = sum(dice_loss(mask, target).sum() for mask, target in pairs) / count
    return bce, dice


def language_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """[N, V] logits at supervised positions, the tokens [N] that come next -> mean cross-entropy; 0, gradient included, when N is 0."""
    return F.cross_entropy(logits.float(), targets, reduction="sum") / max(len(targets), 1)
