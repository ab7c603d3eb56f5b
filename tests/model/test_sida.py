"""What a forward computes, and what it leaves out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model.losses import LossWeights
from model.sam import QUERIES
from model.sida import SIDAForCausalLM
from tests.parity import golden


@pytest.fixture(scope="module")
def model() -> SIDAForCausalLM:
    model = golden.description_model()
    model.loss_weights = LossWeights(ce=1.0, cls=0.5, mask=0.5)
    return model


def test_attention_is_fused_everywhere(model: SIDAForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama and CLIP by their configuration, each block of SAM's encoder (QUERIES at a time), and SAM's decoder seven times."""
    assert model.config._attn_implementation == "sdpa"
    assert model.model.vision_tower.config._attn_implementation == "sdpa"
    calls: list[int] = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args, **kwargs: (calls.append(1), fused(*args, **kwargs))[1])
    net = model.model
    with torch.no_grad():
        embeddings = net.visual_model.encode(torch.randn(1, 3, 1024, 1024))
        net.visual_model.decode(embeddings, torch.randn(1, 256))
    blocks = net.visual_model.image_encoder.blocks
    per_block = [64 * 64 // QUERIES if block.window_size == 0 else 1 for block in blocks]
    assert len(calls) == sum(per_block) + 7


@pytest.mark.parametrize("name", ["tampered_pair", "real_syn_mixed", "tampered1_no_text"])
def test_lm_head_sees_supervised_positions_only(model: SIDAForCausalLM, name: str) -> None:
    batch = golden.batch(name, "description")
    seen: list[torch.Size] = []
    hook = model.lm_head.register_forward_hook(lambda module, args, out: seen.append(args[0].shape))
    try:
        with torch.no_grad():
            out = model(**batch.model_inputs())
            every = F.cross_entropy(model.lm_head(out.hidden[:, :-1]).flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="sum")
    finally:
        hook.remove()
    count = int((batch.labels[:, 1:] != -100).sum())
    assert seen[0] == (count, model.config.hidden_size)
    assert out.losses.ce.item() == pytest.approx(every.item() / max(count, 1), rel=1e-6)


def test_padding_needs_no_attention_mask(model: SIDAForCausalLM) -> None:
    batch = golden.batch("real_syn_mixed", "description")
    assert not batch.attention_mask.all()
    assert "attention_mask" not in batch.model_inputs()
    with torch.no_grad():
        unmasked, masked = model(**batch.model_inputs()), model(**batch.model_inputs(), attention_mask=batch.attention_mask)
    torch.testing.assert_close(unmasked.hidden[batch.attention_mask], masked.hidden[batch.attention_mask])
    torch.testing.assert_close(unmasked.losses.total, masked.losses.total)


def test_sam_encodes_only_what_has_a_mask(model: SIDAForCausalLM) -> None:
    from utils.data.collate import collate

    pictures = golden.samples("description")
    seen: list[int] = []
    hook = model.model.visual_model.image_encoder.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    try:
        with torch.no_grad():
            for names in (["real_0.jpg", "full_synthetic_0.png"], ["real_0.jpg", "tampered_0.png", "tampered_1.png"]):
                model(**collate([pictures[name] for name in names])[0].model_inputs())
    finally:
        hook.remove()
    assert seen == [2]


def test_the_class_token_comes_first_where_it_is_selected(model: SIDAForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        patches = model.encode_images(pixels)
        monkeypatch.setattr(model.config, "mm_vision_select_feature", "cls_patch")
        both = model.encode_images(pixels)
        state = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[model.config.mm_vision_select_layer][:, 0]
        torch.testing.assert_close(both[:, 1:], patches)
        torch.testing.assert_close(both[:, 0], model.model.mm_projector(state))
