"""Three optimizer steps of two micro batches: every loss, gradient norm and resulting weight is the original's."""

from __future__ import annotations

import pytest
import torch

from model.checkpoint import canonical
from model.losses import LossWeights
from tests.parity import golden
from utils.data.collate import collate

FILES = ("real_0.jpg", "full_synthetic_0.png", "tampered_0.png", "tampered_1.png")


def test_trajectory() -> None:
    """The learning rates are the original's order of scheduler and optimizer (1e-3, 0, 5e-4), see --compat reference."""
    want = golden.load_json("more")["trajectory"]
    model = golden.stage1_model()
    model.loss_weights = LossWeights(shared_mask=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=want["lr"], betas=(0.9, 0.95), weight_decay=0.0)
    pictures = golden.samples()
    for i, (indices, micro) in enumerate(zip(want["sequence"], want["micro"], strict=True)):
        batch, _ = collate([pictures[FILES[index]] for index in indices])
        losses = model(**batch.model_inputs()).losses
        golden.close(losses.total, micro["loss"], rtol=1e-5)
        golden.close(losses.cls, micro["cls"], rtol=1e-5)
        (losses.total / want["gas"]).backward()
        if (i + 1) % want["gas"]:
            continue
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        assert norm.item() == pytest.approx(micro["grad_norm"], rel=2e-5)
        optimizer.param_groups[0]["lr"] = micro["lr"]
        optimizer.step()
        optimizer.zero_grad()
    own = {canonical(name): tensor for name, tensor in model.state_dict().items()}
    for name, stored in want["params"].items():
        assert own[name].double().norm().item() == pytest.approx(stored["l2"], rel=1e-5), name
