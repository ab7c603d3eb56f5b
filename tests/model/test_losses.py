from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model.losses import LossWeights, bce_loss, dice_loss, language_loss, mask_losses


def test_dice_of_a_perfect_and_a_disjoint_mask() -> None:
    target = torch.zeros(1, 8, 8)
    target[:, :4] = 1
    sure = (target * 2 - 1) * 50
    assert dice_loss(sure, target).item() == pytest.approx(0, abs=1e-4)
    assert dice_loss(-sure, target).item() == pytest.approx(1, abs=1e-4)


def test_mask_losses_average_over_masks_of_different_sizes() -> None:
    logits = [torch.randn(1, 4, 6), torch.zeros(0, 3, 3), torch.randn(2, 5, 5)]
    targets = [torch.rand(1, 4, 6), torch.zeros(0, 3, 3), torch.rand(2, 5, 5)]
    bce, dice = mask_losses(logits, targets)
    assert bce.item() == pytest.approx(torch.cat([bce_loss(a, b) for a, b in zip(logits, targets, strict=True)]).mean().item(), rel=1e-5)
    assert dice.item() == pytest.approx(torch.cat([dice_loss(a, b) for a, b in zip(logits, targets, strict=True) if len(a)]).mean().item(), rel=1e-5)


def test_no_mask_at_all_is_zero() -> None:
    assert [x.item() for x in mask_losses([torch.zeros(0, 2, 2)], [torch.zeros(0, 2, 2)])] == [0, 0]


def test_mask_of_another_size_names_both() -> None:
    with pytest.raises(ValueError, match=r"image 0 .*\(1, 4, 4\).*\(1, 5, 4\)"):
        mask_losses([torch.zeros(1, 4, 4)], [torch.zeros(1, 5, 4)])


def test_language_loss_is_zero_with_gradient_when_silent() -> None:
    hidden, weight = torch.randn(0, 5), torch.randn(11, 5, requires_grad=True)
    loss = language_loss(hidden @ weight.T, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert weight.grad.abs().max() == 0


def test_language_loss_is_the_mean_over_positions() -> None:
    logits, targets = torch.randn(4, 6), torch.tensor([3, 4, 0, 5])
    assert language_loss(logits, targets).item() == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-6)
    assert language_loss(logits.bfloat16(), targets).dtype == torch.float32


@pytest.mark.parametrize(("weights", "total"), [
    (LossWeights(), 2 + 3 + 5),
    (LossWeights(ce=1, cls=0.5, mask=0.5), 7 + 1 + 4),
    (LossWeights(shared_mask=True), 2 + (3 + 5) * 2),
    (LossWeights(bce=2, dice=0), 2 + 6),
])
def test_weights(weights: LossWeights, total: float) -> None:
    losses = weights.combine(ce=torch.tensor(7.0), cls=torch.tensor(2.0), mask_bce=torch.tensor(3.0), mask_dice=torch.tensor(5.0))
    assert losses.total.item() == total
    assert losses.detached() == {"total": total, "ce": 7, "cls": 2, "mask_bce": 3, "mask_dice": 5}
