"""Losses, class logits, mask logits and gradients of both stages equal the original's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.checkpoint import canonical
from model.losses import LossWeights
from model.sida import SIDAForCausalLM
from model.types import SidaOutput
from tests.parity import golden

STAGE1 = ["tampered_pair", "real", "full_synthetic", "tampered0", "real_syn_mixed"]
DESCRIPTION = [*STAGE1, "tampered1_no_text"]


@pytest.fixture(scope="module")
def stage1() -> SIDAForCausalLM:
    return golden.stage1_model()


@pytest.fixture(scope="module")
def description() -> SIDAForCausalLM:
    return golden.description_model()


def run(model: SIDAForCausalLM, name: str, stage: str) -> SidaOutput:
    model.zero_grad()
    out = model(**golden.batch(name, stage).model_inputs())
    out.losses.total.backward()
    return out


def check_gradients(model: SIDAForCausalLM, stored: dict, npz: dict[str, np.ndarray], prefix: str, scale: float = 1.0) -> None:
    """Norms and samples of every group; exactly zero where the original's are; the stored ones in full."""
    ours = {canonical(n): p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert set(ours) == {canonical(name) for name in stored}
    for name, want in stored.items():
        grad = ours[canonical(name)]
        if want is None or want["absmax"] == 0:
            assert grad is None or not grad.abs().max() > 0, f"{name}: the original has no gradient here"
            continue
        if want["l2"] < 1e-6:  # softmax is blind to a key's bias: rounding noise on both sides
            assert grad.norm() < 1e-6, name
            continue
        assert grad.norm().item() == pytest.approx(want["l2"] * scale, rel=2e-5), name
        if (full := npz.get(f"{prefix}/grad/{name}")) is not None:
            golden.close(grad, full * scale, rtol=2e-5)


def check_masks(out: SidaOutput, npz: dict[str, np.ndarray], name: str, key: str, stride: int) -> None:
    for i, masks in enumerate(out.mask_logits):
        stored = npz.get(f"{name}/{i}/{key}")
        assert (stored is None) == (len(masks) == 0)
        if stored is not None:
            golden.close(masks[0, ::stride, ::stride], stored)


@pytest.mark.parametrize("name", STAGE1)
def test_stage1(stage1: SIDAForCausalLM, name: str) -> None:
    stage1.loss_weights = LossWeights(shared_mask=True)  # --compat reference
    out, want, npz = run(stage1, name, "sida"), golden.load_json("stage1_forward")[name], golden.load_npz("stage1_forward")
    golden.close(out.cls_logits, want["logits"])
    golden.close(out.losses.total, want["loss"])
    golden.close(out.losses.cls, want["cls_loss"])
    golden.close((out.losses.mask_bce + out.losses.mask_dice) * 2, want["mask_loss"])
    if "pure_bce" in want:
        golden.close(out.losses.mask_bce, want["pure_bce"])
        golden.close(out.losses.mask_dice, want["pure_dice"])
        bits = [np.packbits((m[0] > 0).numpy()) for m in out.mask_logits if len(m)]
        flips = [np.unpackbits(b ^ npz[f"{name}/{i}/mask_bits"]).mean() for i, b in enumerate(bits)]
        assert max(flips) < 1e-5, f"{flips} of the pixels changed sides"  # logits of 1e-6 around zero
    check_masks(out, npz, name, "mask_s4", 4)
    check_gradients(stage1, want["grads"], npz, name)


def test_stage1_other_weights(stage1: SIDAForCausalLM) -> None:
    stage1.loss_weights = LossWeights(bce=2.0, dice=0.5, mask=3.0, cls=0.25, shared_mask=True)
    out = run(stage1, "tampered_pair", "sida")
    want = golden.load_json("stage1_forward")["tampered_pair_weights_bce2_dice0.5_mask3_cls0.25"]
    golden.close(out.losses.total, want["loss"])
    check_gradients(stage1, want["grads"], {}, "")


def test_default_weights_count_each_mask_loss_once(stage1: SIDAForCausalLM) -> None:
    stage1.loss_weights = LossWeights()
    losses = run(stage1, "tampered_pair", "sida").losses
    golden.close(losses.total, (losses.cls + losses.mask_bce + losses.mask_dice).item(), rtol=1e-6)


@pytest.mark.parametrize("name", DESCRIPTION)
def test_description(description: SIDAForCausalLM, name: str) -> None:
    description.loss_weights = LossWeights(ce=1.0, cls=0.5, mask=0.5)
    out, want, npz = run(description, name, "description"), golden.load_json("desc_forward")[name], golden.load_npz("desc_forward")
    golden.close(out.cls_logits, want["logits"])
    golden.close(out.losses.cls, want["cls_loss"])
    golden.close(out.losses.mask_bce, want["mask_bce_loss"])
    golden.close(out.losses.mask_dice, want["mask_dice_loss"])
    check_masks(out, npz, name, "mask_s8", 8)
    if want["n_supervised"] == 0:  # the original's loss is NaN here; ours has no language term
        assert out.losses.ce.item() == 0.0
        golden.close(out.losses.total, 0.5 * want["cls_loss"] + 0.5 * want["mask_loss"])
        return
    golden.close(out.losses.ce, want["ce_loss"])
    golden.close(out.losses.total, want["loss"])
    check_gradients(description, want["grads"], npz, name)


def test_no_gradient_is_nan_without_descriptions(description: SIDAForCausalLM) -> None:
    description.loss_weights = LossWeights(ce=1.0, cls=0.5, mask=0.5)
    run(description, "tampered1_no_text", "description")
    for name, parameter in description.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_one_seg_makes_the_query_idle(stage1: SIDAForCausalLM) -> None:
    stage1.loss_weights = LossWeights(shared_mask=True)
    run(stage1, "tampered_pair", "sida")
    net = stage1.model
    assert net.sida_fc1.weight.grad.abs().max() == 0
    q, k, v = net.attention_layer.in_proj_weight.grad.chunk(3)
    assert q.abs().max() == 0
    assert k.abs().max() == 0
    assert v.abs().max() > 0


def test_intermediates(stage1: SIDAForCausalLM) -> None:
    npz, batch = golden.load_npz("stage1_forward"), golden.batch("tampered_pair")
    with torch.no_grad():
        features = stage1.encode_images(batch.images_clip)
        embeddings = stage1.model.visual_model.encode(batch.images_sam)
    stored = npz["tampered_pair/mm_projector_s"]
    golden.close(features[:, :: features.shape[1] // stored.shape[1]], stored)
    stored = npz["tampered_pair/image_embeddings_s"]
    golden.close(embeddings[:, :: embeddings.shape[1] // stored.shape[1], ::8, ::8], stored)


def test_real_and_tampered_in_one_batch(stage1: SIDAForCausalLM) -> None:
    """The original refuses such a batch; ours gives each image what it gets alone."""
    from utils.data.collate import collate

    stage1.loss_weights = LossWeights()
    pictures = golden.samples()
    mixed, _ = collate([pictures["real_0.jpg"], pictures["tampered_0.png"]])
    with torch.no_grad():
        out = stage1(**mixed.model_inputs())
    stored = golden.load_json("stage1_forward")
    golden.close(out.cls_logits, [stored["real"]["logits"][0], stored["tampered0"]["logits"][0]])
    golden.close(out.mask_logits[1][0, ::4, ::4], golden.load_npz("stage1_forward")["tampered0/0/mask_s4"])
