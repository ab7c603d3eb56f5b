"""An expert's opinion counts wherever a class is read, and costs a checkpoint without one nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig

from model.checkpoint import load_for_training, load_pretrained, save_pretrained
from model.config import preset
from model.content import STATES, ContentExpert
from tests.tiny import build_tiny_lisa, build_tiny_set
from utils.data.collate import collate
from utils.data.dataset import SidaDataset, SidaProcessor
from utils.data.sid_set import read_split
from utils.infer.decode import read
from utils.infer.pipeline import SidaPipeline
from utils.train.features import bytes_of, identity
from utils.train.stages import STAGES

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
ASKED = "Can you identify this image? [CLS]"  # the reference reads there; random weights write none
CERTAIN = torch.tensor([0.0, 0.0, 500.0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SIDA checkpoint with an expert, of random weights."""
    root = tmp_path_factory.mktemp("content")
    model, tokenizer = load_for_training(build_tiny_lisa(root / "lisa", content=SIZES), "sida")
    return save_pretrained(model, tokenizer, root / "sida")


@pytest.fixture
def pipe(folder: Path) -> SidaPipeline:
    return SidaPipeline.from_pretrained(folder, device="cpu")


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)


def test_it_sees_the_class_token_and_how_patches_are_spread() -> None:
    """Of pixels of its own size; larger ones are made smaller first."""
    torch.manual_seed(0)
    expert = ContentExpert(CLIPVisionConfig(**SIZES)).eval()
    with torch.no_grad():
        pixels = torch.randn(2, 3, 32, 32)
        states = expert.tower.post_layernorm(expert.tower(pixels).last_hidden_state)
        seen = expert.see(pixels)
        assert seen.shape == (2, STATES, 64)
        torch.testing.assert_close(seen[:, 0], states[:, 0])
        torch.testing.assert_close(seen[:, 1], states[:, 1:].mean(dim=1))
        torch.testing.assert_close(seen[:, 2], states[:, 1:].std(dim=1))
        flat = torch.linspace(-1, 1, 3).view(1, 3, 1, 1)
        torch.testing.assert_close(expert.see(flat.expand(1, 3, 96, 96)), expert.see(flat.expand(1, 3, 32, 32)), atol=1e-4, rtol=1e-4)
        assert expert(seen).shape == (2, 3)


def test_the_language_model_does_not_see_it(pipe: SidaPipeline, rgb: np.ndarray) -> None:
    model, seen = pipe.model, pipe.prepare(rgb)
    with torch.no_grad():
        features = model.see(seen.images_clip)
        assert features.shape[1] == model.config.image_patches + STATES
        assert model.see(features) is features
        whole = model.encode_images(seen.images_clip)
        model.model.content = None
        assert model.see(seen.images_clip).shape[1] == model.config.image_patches
        torch.testing.assert_close(model.encode_images(seen.images_clip), whole)


@pytest.mark.parametrize("decode", ["forced", "generate", "reference"])
@pytest.mark.parametrize("kept", [False, True])
def test_its_logits_are_added_however_a_picture_is_asked_about(pipe: SidaPipeline, rgb: np.ndarray, decode: str, kept: bool) -> None:
    """From pixels and from kept features alike."""
    question = pipe._question(pipe.look(rgb) if kept else pipe.prepare(rgb), ASKED, 8, None)
    with torch.inference_mode():
        told = pipe.model.model.content(pipe.model.see(question.images_clip)[:, -STATES:])[0]
    assert told.abs().max() > 0.01
    both = read(pipe.model, question, decode).cls_logits
    pipe.model.model.content.head.weight.data.zero_()
    pipe.model.model.content.head.bias.data.zero_()
    torch.testing.assert_close(both, read(pipe.model, question, decode).cls_logits + told, atol=1e-4, rtol=1e-4)
    pipe.model.model.content.head.bias.data.copy_(CERTAIN)
    assert pipe(rgb, ASKED, decode=decode, max_new_tokens=8).label == 2


def test_it_is_saved_and_loaded_and_stays_as_it_is_in_training(folder: Path, tmp_path: Path) -> None:
    """The loss of a validation counts it; its weights are of no stage."""
    model, tokenizer = load_pretrained(folder)
    again, _ = load_pretrained(save_pretrained(model, tokenizer, tmp_path / "again"))
    names = {name for name in model.state_dict() if name.startswith("model.content.")}
    assert len(names) > 20
    assert all(torch.equal(again.state_dict()[name], model.state_dict()[name]) for name in names)
    records = read_split(build_tiny_set(tmp_path / "data"), "train")
    batch, _ = collate([SidaDataset(records, SidaProcessor(tokenizer, model.config))[i] for i in range(3)])
    with torch.no_grad():
        losses = [model(**batch.model_inputs()).losses.cls.item()]
        model.model.content.head.bias.copy_(CERTAIN)
        losses.append(model(**batch.model_inputs()).losses.cls.item())
    assert losses[1] > losses[0] + 1
    families = {family for stage in STAGES.values() for family in stage.families(compat=True, mask_decoder=True, vision=True, language=True)}
    assert not any(f".{family}." in f".{name}." for name in names for family in families)


def test_what_it_sees_is_kept_with_the_features(folder: Path, tmp_path: Path) -> None:
    """A cache knows how much that is, and that another expert's is something else."""
    model, tokenizer = load_pretrained(folder)
    record = read_split(build_tiny_set(tmp_path / "data"), "train")[0]
    batch, _ = collate([SidaDataset([record], SidaProcessor(tokenizer, model.config))[0]])
    with torch.no_grad():
        assert bytes_of(model, record) == model.see(batch.images_clip).half().nbytes
        before = identity(model, torch.float32)
        model.model.content.tower.post_layernorm.bias += 1
    assert {name for name, value in identity(model, torch.float32).items() if value != before[name]} == {"content"}
    model.model.content = None
    assert before.keys() - identity(model, torch.float32).keys() == {"content"}


def test_another_width_than_the_towers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"content has a hidden_size of 48: expected the vision tower's, 64"):
        preset("debug", vocab_size=420, content=SIZES | {"hidden_size": 48})


def test_what_has_none_stores_nothing_of_one(tmp_path: Path) -> None:
    """Published checkpoints load as before."""
    model, _ = load_for_training(build_tiny_lisa(tmp_path / "lisa"), "sida")
    assert model.model.content is None
    assert not any("content" in name for name in model.state_dict())
