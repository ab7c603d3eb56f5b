"""What a noise expert sees, and that it stands beside a content expert without either hearing the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint import load_for_training, load_pretrained, save_pretrained
from model.config import preset
from model.noise import NoiseExpert
from tests.model.test_content import ASKED, SIZES
from tests.tiny import build_tiny_lisa, build_tiny_set
from utils.data.collate import collate
from utils.data.dataset import SidaDataset, SidaProcessor
from utils.data.sid_set import read_split
from utils.infer.decode import read
from utils.infer.pipeline import SidaPipeline
from utils.train.features import bytes_of, identity

NOISE = {"channels": [8, 8, 8, 16], "hidden": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SIDA checkpoint with both experts, of random weights."""
    root = tmp_path_factory.mktemp("noise")
    torch.manual_seed(0)
    model, tokenizer = load_for_training(build_tiny_lisa(root / "lisa", content=SIZES, noise=NOISE), "sida")
    return save_pretrained(model, tokenizer, root / "sida")


@pytest.fixture
def pipe(folder: Path) -> SidaPipeline:
    return SidaPipeline.from_pretrained(folder, device="cpu")


def test_a_patch_is_seen_with_67_pixels_around_it() -> None:
    """And nothing of what lies further; a constant added to all levels is not seen at all, but at the picture's edge."""
    torch.manual_seed(0)
    expert = NoiseExpert(64).eval()
    levels = torch.randint(0, 200, (1, 3, 256, 256)).float()
    with torch.no_grad():
        patches = expert.patches(levels)
        assert patches.shape == (1, 80, 32, 32)
        for away, same in ((68, True), (40, False)):
            changed = levels.clone()
            changed[..., : 128 - away] = 0
            changed[..., 128 + away :] = 0
            assert torch.equal(expert.patches(changed)[..., 16, 16], patches[..., 16, 16]) == same
        torch.testing.assert_close(expert.patches(levels + 50)[..., 12:20, 12:20], patches[..., 12:20, 12:20], atol=1e-4, rtol=1e-4)


def test_it_sees_whole_grey_levels_in_half_precision_too() -> None:
    """Normalised and rounded to half precision, pixels are still told from their neighbours by one level."""
    torch.manual_seed(0)
    expert = NoiseExpert(64).eval()
    levels = torch.randint(0, 256, (1, 3, 64, 64)).float()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))
    with torch.no_grad():
        seen = expert.see(((levels / 255 - mean) / std).half())
        assert seen.shape == (1, 1, 64)
        torch.testing.assert_close(seen[:, 0], expert.picture(expert.patches(levels)))


def test_a_picture_is_what_its_patches_are_like_wherever_they_are() -> None:
    """Their mean, how they are spread, and what few are most unlike the rest: one odd patch in a hundred counts, one place is as good as another."""
    torch.manual_seed(0)
    expert = NoiseExpert(64, [8, 8, 8, 16], 20).eval()
    patches = torch.rand(1, 16, 10, 10)
    odd = patches.clone()
    odd[..., 4, 7] += 20
    with torch.no_grad():
        plain = expert.picture(patches)
        torch.testing.assert_close(expert.picture(patches.flatten(2)[..., torch.randperm(100)].unflatten(2, (10, 10))), plain)
        expert.summary.weight[:, :32] = 0  # neither mean nor spread
        assert (expert.picture(odd) - expert.picture(patches)).abs().max() > 0.5


@pytest.mark.parametrize("decode", ["forced", "generate"])
@pytest.mark.parametrize("kept", [False, True])
def test_both_experts_logits_are_added(pipe: SidaPipeline, decode: str, kept: bool) -> None:
    """From pixels and from kept features alike, each from its own rows."""
    rgb = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    question = pipe._question(pipe.look(rgb) if kept else pipe.prepare(rgb), ASKED, 8, None)
    net = pipe.model.model
    with torch.inference_mode():
        pixels = pipe.prepare(rgb).images_clip
        told = net.content(net.content.see(pixels)) + net.noise(net.noise.see(pixels))
    both = read(pipe.model, question, decode).cls_logits
    for expert in net.experts.values():
        expert.head.weight.data.zero_()
        expert.head.bias.data.zero_()
    torch.testing.assert_close(both, read(pipe.model, question, decode).cls_logits + told[0], atol=1e-4, rtol=1e-4)


def test_they_are_not_heard_while_the_network_trains(folder: Path, tmp_path: Path) -> None:
    """From pixels and from kept features alike: the class head's verdict is its own then, theirs is back when it is asked."""
    model, tokenizer = load_pretrained(folder)
    batch, _ = collate([SidaDataset(read_split(build_tiny_set(tmp_path / "data"), "train"), SidaProcessor(tokenizer, model.config))[0]])
    inputs = batch.model_inputs()
    with torch.no_grad():
        together = model(**inputs).cls_logits
        kept = model.see(inputs["images_clip"])
        alone = model.train()(**inputs).cls_logits
        assert (together - alone).abs().max() > 1e-3
        torch.testing.assert_close(model(**inputs | {"images_clip": kept}).cls_logits, alone)
        for expert in model.model.experts.values():
            expert.head.weight.zero_()
            expert.head.bias.zero_()
        torch.testing.assert_close(model.eval()(**inputs).cls_logits, alone)


def test_what_they_see_is_kept_with_the_features(folder: Path, tmp_path: Path) -> None:
    """A cache knows how much that is, and that another expert's is something else; what an expert says of it may change."""
    model, tokenizer = load_pretrained(folder)
    record = read_split(build_tiny_set(tmp_path / "data"), "train")[0]
    batch, _ = collate([SidaDataset([record], SidaProcessor(tokenizer, model.config))[0]])
    with torch.no_grad():
        assert bytes_of(model, record) == model.see(batch.images_clip).half().nbytes
        before = identity(model, torch.float32)
        model.model.noise.head.bias += 1
        assert identity(model, torch.float32) == before
        model.model.noise.summary.bias += 1
    assert {name for name, value in identity(model, torch.float32).items() if value != before[name]} == {"noise"}


def test_more_than_a_features_width_is_refused() -> None:
    with pytest.raises(ValueError, match="noise has 65 hidden values: expected at most the vision tower's width, 64"):
        preset("debug", vocab_size=420, noise=NOISE | {"hidden": 65})
