"""What an optimizer step moves, flag by flag."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.checkpoint import canonical
from utils.data.augment import mild
from utils.data.collate import collate
from utils.data.dataset import SidaDataset
from utils.train.build import compile_layers, make_processor, read_records, train_dataset, trainable_model
from utils.train.config import TrainConfig

HEADS = {"embed_tokens", "mask_decoder", "text_hidden_fcs", "cls_head", "sida_fc1", "attention_layer"}
TOWERS = {"vision_tower", "mm_projector", "image_encoder"}
LAYERS = {"layers", "norm"}


def config(place: Path, **flags: object) -> TrainConfig:
    base = {"version": str(place / "lisa"), "dataset_dir": str(place / "set"), "vision_pretrained": str(place / "lisa" / "sam.pth"), "precision": "fp32"}
    return TrainConfig(**base | flags)


def family(name: str) -> str:
    """`layers`, `vision_tower`, `mask_decoder`, `lora`, ..."""
    if "lora_" in name:
        return "lora"
    parts = canonical(name).removeprefix("model.").split(".")
    return parts[1] if parts[0] == "visual_model" else parts[0]


def moved_by_a_step(cfg: TrainConfig) -> tuple[set[str], set[str]]:
    """Names of the weights that a step on one tampered picture changes, and of all that train."""
    model, tokenizer = trainable_model(cfg, torch.float32)
    records = [record for record in read_records(cfg, "train") if record.mask]
    batch, _ = collate([SidaDataset(records, make_processor(cfg, model, tokenizer))[0]])
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    model(**batch.model_inputs()).losses.total.backward()
    torch.optim.SGD(trained, lr=10.0).step()
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    return moved, {name for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, HEADS | {"lora"}),
        ({"train_vision": True}, HEADS | TOWERS | {"lora"}),
        ({"lora_r": 0}, HEADS | LAYERS),
        ({"lora_r": 0, "train_vision": True}, HEADS | LAYERS | TOWERS),
        ({"lora_r": 0, "train_vision": True, "gradient_checkpointing": False}, HEADS | LAYERS | TOWERS),
        ({"lora_r": 0, "compat": "reference"}, HEADS | {"layers"}),  # its layernorms, by accident
    ],
    ids=["default", "vision", "full", "full_vision", "without_checkpointing", "reference"],
)
def test_what_a_step_moves(place: Path, flags: dict, expected: set[str]) -> None:
    moved, trained = moved_by_a_step(config(place, **flags))
    assert moved <= trained
    assert {family(name) for name in trained} == expected
    assert {family(name) for name in moved} == expected - {"sida_fc1"}  # idle with one [SEG], see docs/faithfulness.md
    layers = {name for name in trained if family(name) == "layers"}
    if flags.get("compat"):
        assert all("post_attention_layernorm" in name for name in layers)
    elif layers:
        assert layers <= moved
        assert {canonical(name).split(".")[2] for name in layers} == {"0", "1"}


def test_every_used_part_of_the_towers_moves(place: Path) -> None:
    """Idle are only what follows CLIP's selected layer, and its key biases, which attention's softmax cancels."""
    moved, trained = moved_by_a_step(config(place, train_vision=True))
    still = {canonical(name) for name in trained - moved if family(name) in TOWERS}
    assert all(
        name.startswith(("model.vision_tower.encoder.layers.2.", "model.vision_tower.post_layernorm.")) or name.endswith("k_proj.bias") for name in still
    )


def test_without_a_compiler_training_goes_on(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    import torch._inductor.config

    model, _ = trainable_model(config(place), torch.float32)
    torch._dynamo.reset()
    with caplog.at_level("WARNING"), torch._inductor.config.patch({"cpp.cxx": ("/nowhere/g++",)}):
        assert not compile_layers(model, torch.device("cpu"))
    assert "--compile has no effect" in caplog.text
    assert all(module._compiled_call_impl is None for module in model.modules())


@pytest.mark.slow
@pytest.mark.parametrize("flags", [{}, {"gradient_checkpointing": False}, {"train_vision": True}])
def test_compiled_layers_compute_the_same(place: Path, flags: dict) -> None:
    losses, gradients = [], []
    for compiled in (False, True):
        model, tokenizer = trainable_model(config(place, lora_dropout=0.0, **flags), torch.float32)
        assert not compiled or compile_layers(model, torch.device("cpu"))
        records = [record for record in read_records(config(place), "train") if record.mask]
        batch, _ = collate([SidaDataset(records, make_processor(config(place), model, tokenizer))[0]])
        loss = model(**batch.model_inputs()).losses.total
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-7 + 1e-4 * gradient.abs().max().item(), rtol=1e-3)


def test_only_training_is_augmented(place: Path) -> None:
    cfg = config(place, augment=True, seed=3)
    model, tokenizer = trainable_model(cfg, torch.float32)
    records, processor = read_records(cfg, "train"), make_processor(cfg, model, tokenizer)
    assert train_dataset(cfg, records, processor).augment.seed == 3
    assert train_dataset(config(place), records, processor).augment is None
    assert train_dataset(config(place, turn=True, worn=0.4, seed=3), records, processor).augment == mild(3, worn=0.4)
    assert train_dataset(config(place, worn=0.4, seed=3), records, processor).augment == mild(3, turn=False, worn=0.4)
    plain, changed = SidaDataset(records, processor)[0], train_dataset(cfg, records, processor)[0]
    assert plain.image_sam.shape == changed.image_sam.shape
    assert not torch.equal(plain.image_sam, changed.image_sam)
