"""Names, shapes, counts and merged weights equal the original's, at tiny and at real size."""

from __future__ import annotations

import copy

import pytest
import torch

from model.checkpoint import canonical, read_tensors, save_pretrained
from model.config import preset
from model.lora import add_lora, set_trainable
from model.sida import SIDAForCausalLM
from tests.parity import golden


def published(names: dict[str, list[int]]) -> dict[str, tuple[int, ...]]:
    return {canonical(k): tuple(v) for k, v in names.items() if "inv_freq" not in k}


@pytest.mark.parametrize(("file", "size", "overrides", "stage"), [
    ("full_stage1_7B", "7b", {}, "sida"),
    ("full_stage1_13B", "13b", {}, "sida"),
    ("full_desc_7B", "7b", {"vocab_size": 32005, "stage": "description"}, "description"),
])
def test_real_size(file: str, size: str, overrides: dict, stage: str) -> None:
    want = golden.load_json(file)
    with torch.device("meta"):
        model = SIDAForCausalLM(preset(size, **overrides), cls_id=0, seg_id=1)
    ours = {canonical(k): tuple(v.shape) for k, v in model.state_dict().items() if "vision_tower" not in k}
    assert ours == published(want["hf_checkpoint"])
    assert all(name.startswith(("model.", "lm_head.")) for name in ours)
    add_lora(model, 8, 16, 0.05, ["q_proj", "v_proj"])
    assert set_trainable(model, golden.TRAINABLE[stage]) == want["n_trainable"]
    trainable = {canonical(n): tuple(p.shape) for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == published(want["trainable"])


@pytest.mark.parametrize(("stage", "build"), [("stage1_setup", golden.stage1_model), ("desc_setup", golden.description_model)])
def test_trainable_set(stage: str, build: object) -> None:
    want = golden.load_json("setup")[stage]
    model = build()
    trainable = {canonical(n): tuple(p.shape) for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == published(want["trainable"])
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == want["n_trainable"]


def test_default_leaves_the_layernorms_frozen() -> None:
    model = copy.deepcopy(golden.stage1_model())
    set_trainable(model, ("embed_tokens", "mask_decoder", "text_hidden_fcs", "cls_head", "sida_fc1", "attention_layer"))
    assert not any(p.requires_grad for n, p in model.named_parameters() if "layernorm" in n)


def test_merge(tmp_path: object) -> None:
    """What is written after folding LoRA in is the original's merged checkpoint: W + (16 / 8) B A, bit for bit."""
    want = golden.load_json("merge")
    model = golden.merged_model()
    save_pretrained(model, golden.tokenizer(), tmp_path)
    saved = dict(read_tensors(tmp_path))
    assert {k: tuple(v.shape) for k, v in saved.items()} == {k: tuple(v["shape"]) for k, v in want["keys"].items() if "inv_freq" not in k}
    state = golden.stage1_state("sida")
    for name, tensor in saved.items():
        stored = want["keys"][name]
        assert tensor.double().norm().item() == pytest.approx(stored["l2"], rel=1e-9), name
        a, b = (state.get(name.removesuffix(".weight") + f".lora_{x}.default.weight") for x in "AB")
        assert torch.equal(tensor, state[name] if a is None else state[name] + (b @ a) * (16 / 8)), name
    config = golden.load_json("merge")["config"]
    written = model.config.to_dict()
    for key in ("model_type", "architectures", "hidden_size", "mm_hidden_size", "mm_vision_select_layer", "mm_use_im_start_end", "out_dim", "vocab_size", "use_cache"):
        assert written[key] == config[key], key
