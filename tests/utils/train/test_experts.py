"""Experts are fitted on one split, weighed on another, and what they say is part of the checkpoint."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss
from transformers import CLIPVisionConfig, CLIPVisionModel

from model.checkpoint import load_for_training, load_pretrained, save_pretrained
from tests.tiny import build_tiny_lisa, build_tiny_set
from utils.data.sid_set import read_split
from utils.eval.summary import fit_temperature
from utils.infer.pipeline import SidaPipeline
from utils.train.experts import fit_head, fit_weights, main, opinions, verdicts
from utils.train.noise import main as train_noise

SIZES = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}


def drawn(count: int, sharpness: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are as sure as they are right, and labels drawn by them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, 3)) * sharpness
    return logits, np.array([rng.choice(3, p=np.exp(row)) for row in log_softmax(logits, axis=1)])


def test_an_expert_that_exaggerates_is_weighed_down() -> None:
    """Each expert sees its part of what decides: the right weight undoes that one shouts, or whispers."""
    (ours, _), (told, _) = drawn(20000, 1.0, 0), drawn(20000, 1.0, 1)
    labels = np.array([np.random.default_rng(i).choice(3, p=np.exp(row)) for i, row in enumerate(log_softmax(ours + told, axis=1))])
    assert fit_weights(ours, 4 * told[None], labels) == pytest.approx([0.25], abs=0.02)
    assert fit_weights(3 * ours, told[None], labels) == pytest.approx([3], abs=0.25)
    third, _ = drawn(20000, 1.0, 2)
    labels = np.array([np.random.default_rng(i).choice(3, p=np.exp(row)) for i, row in enumerate(log_softmax(ours + told + third, axis=1))])
    assert fit_weights(ours, np.stack([4 * told, third / 2]), labels) == pytest.approx([0.25, 2], rel=0.1)


@pytest.mark.parametrize("seed", [0, 23, 41])  # of 23 a simplex stops at less than half of both weights
def test_no_other_weights_are_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ours, *told = rng.normal(size=(3, 300, 3)) * rng.uniform(0.5, 4, (3, 1, 1))
    sharpness = rng.uniform(0.4, 2.5, 3)
    labels = np.array([rng.choice(3, p=p) for p in softmax(np.tensordot(1 / sharpness, [ours, *told], 1), axis=1)])

    def loss(weights: np.ndarray) -> float:
        logits = ours + np.tensordot(weights, told, 1)
        return log_loss(labels, softmax(logits / fit_temperature(logits, labels), axis=1))

    found = fit_weights(ours, np.stack(told), labels)
    for factors in itertools.product((0.5, 0.97, 1, 1.03, 2), repeat=2):
        assert loss(found) <= loss(found * factors) + 1e-9


def test_an_expert_that_knows_nothing_is_not_heard() -> None:
    ours, labels = drawn(20000, 2.0, 0)
    noise, _ = drawn(20000, 1.0, 1)
    assert fit_weights(ours, noise[None], labels)[0] < 0.05


def test_the_head_tells_what_can_be_told() -> None:
    """From features of any scale."""
    rng = np.random.default_rng(0)
    labels = np.arange(6000) % 3
    seen = rng.normal(size=(6000, 8)) * 1000
    seen[:, 0] += 5000 * labels
    weight, bias = fit_head(seen, labels)
    assert ((seen @ weight.T + bias).argmax(axis=1) == labels).mean() > 0.8
    with pytest.raises(ValueError, match="no pictures of .'tampered'. in the train split"):
        fit_head(seen, labels % 2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint `base`, a data set, and an expert of each sort that says something."""
    root = tmp_path_factory.mktemp("experts")
    torch.manual_seed(0)
    CLIPVisionModel(CLIPVisionConfig(**SIZES, initializer_factor=5.0)).save_pretrained(root / "clip")
    model, tokenizer = load_for_training(build_tiny_lisa(root / "lisa"), "sida")
    model.config.views = 4  # an expert is weighed as it is heard: at each look
    save_pretrained(model, tokenizer, root / "base")
    build_tiny_set(root / "data", 6, sizes=((64, 64),))
    few = ["--crop", "32", "--crop_steps", "2", "--steps", "2", "--batch_size", "3", "--workers", "0", "--precision", "fp32"]
    for name, seed in (("noise", "0"), ("more-noise", "1")):
        assert train_noise(["--dataset_dir", str(root / "data"), "--out", str(root / name), "--seed", seed, *few]) == 0
    return root


@pytest.mark.parametrize("given", [("clip",), ("noise",), ("clip", "noise")])
def test_the_command_adds_them_and_changes_nothing_else(root: Path, tmp_path: Path, given: tuple[str, ...]) -> None:
    """Verdicts of the new checkpoint are the old one's plus the experts'; others take their place."""
    argv = ["--dataset_dir", str(root / "data"), "--workers", "0", *(word for name in given for word in (f"--{name}", str(root / name)))]
    assert main(["--version", str(root / "base"), *argv, "--out", str(tmp_path / "more")]) == 0
    (was, _), (now, tokenizer) = load_pretrained(root / "base"), load_pretrained(tmp_path / "more")
    assert all(torch.equal(now.state_dict()[name], weight) for name, weight in was.state_dict().items())
    assert list(now.model.experts) == ["content" if name == "clip" else name for name in given]
    records = read_split(root / "data", "validation")
    both = verdicts(SidaPipeline(now, tokenizer, "cpu", torch.float32), records)
    told = sum(opinions(expert, records, now.config.clip["image_size"], 0, 4) for expert in now.model.experts.values())
    now.model.content = now.model.noise = None
    added = both - verdicts(SidaPipeline(now, tokenizer, "cpu", torch.float32), records)
    assert np.ptp(told, axis=1).max() > 1e-3
    assert added - added.mean(axis=1, keepdims=True) == pytest.approx(told - told.mean(axis=1, keepdims=True), abs=1e-4)
    other = "noise" if given == ("clip",) else "clip"
    assert main(["--version", str(tmp_path / "more"), *argv[:4], f"--{other}", str(root / other), "--out", str(tmp_path / "again")]) == 0
    again, _ = load_pretrained(tmp_path / "again")
    assert list(again.model.experts) == ["noise" if other == "noise" else "content"]


def test_a_checkpoint_gets_those_of_another(root: Path, tmp_path: Path) -> None:
    """What they see stays as it was; what they say is weighed anew, each by one number."""
    data = ["--dataset_dir", str(root / "data"), "--workers", "0"]
    ours = [*data, "--clip", str(root / "clip"), "--noise", str(root / "noise")]
    assert main(["--version", str(root / "base"), *ours, "--out", str(tmp_path / "first")]) == 0
    assert main(["--version", str(root / "base"), *data, "--experts", str(tmp_path / "first"), "--out", str(tmp_path / "second")]) == 0
    (first, _), (second, _) = load_pretrained(tmp_path / "first"), load_pretrained(tmp_path / "second")
    before, after = first.state_dict(), second.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before if ".head." not in name)
    for expert, other in zip(first.model.experts.values(), second.model.experts.values(), strict=True):
        weight = (other.head.weight / other.head.weight.norm()).flatten() @ (expert.head.weight / expert.head.weight.norm()).flatten()
        assert weight.item() == pytest.approx(1, abs=1e-5)
    assert (
        main(
            [
                "--version",
                str(tmp_path / "first"),
                *data,
                "--experts",
                str(tmp_path / "first"),
                "--noise",
                str(root / "more-noise"),
                "--out",
                str(tmp_path / "third"),
            ]
        )
        == 0
    )
    third = load_pretrained(tmp_path / "third")[0].state_dict()
    assert {name for name in before if ".head." not in name and not torch.equal(before[name], third[name])} == {
        name for name in before if name.startswith(("model.noise.body", "model.noise.summary"))
    }


def test_none_is_refused(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version", str(root / "base"), "--dataset_dir", str(root / "data"), "--out", str(tmp_path / "more")])
    assert "give --clip, --noise or --experts" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--version", str(root / "base"), "--experts", str(root / "base"), "--dataset_dir", str(root / "data"), "--out", str(tmp_path / "more")])
    assert f"--experts: {root / 'base'} has none" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--version", str(root / "base"), "--noise", str(tmp_path), "--dataset_dir", str(root / "data"), "--out", str(tmp_path / "more")])
    assert "noise.safetensors does not exist: expected what `python -m utils.train.noise" in capsys.readouterr().err


def test_another_width_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    CLIPVisionModel(CLIPVisionConfig(**SIZES | {"hidden_size": 48, "num_attention_heads": 3})).save_pretrained(tmp_path / "clip")
    base = save_pretrained(*load_for_training(build_tiny_lisa(tmp_path / "lisa"), "sida"), tmp_path / "base")
    with pytest.raises(SystemExit) as failure:
        main(["--version", str(base), "--clip", str(tmp_path / "clip"), "--dataset_dir", str(tmp_path), "--out", str(tmp_path / "more")])
    assert failure.value.code == 1
    assert "content has a hidden_size of 48: expected the vision tower's, 64" in capsys.readouterr().err
