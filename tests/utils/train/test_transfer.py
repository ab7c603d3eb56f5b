"""What the description stage made of one network is added to another, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.checkpoint import load_for_training, load_pretrained, save_pretrained
from tests.scripts.launch import ROOT
from tests.tiny import build_tiny_lisa
from utils.train.enlarge import enlarge
from utils.train.transfer import TAUGHT, give_encoders, main, transfer

TINY, DESCRIBES = ROOT / "ck" / "SIDA-tiny", ROOT / "ck" / "SIDA-tiny-description"
ENCODERS = ("vision_tower", "image_encoder", "mm_projector")


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SIDA checkpoint."""
    folder = tmp_path_factory.mktemp("before")
    lisa = build_tiny_lisa(folder / "lisa")
    return save_pretrained(*load_for_training(lisa, "sida", vision_pretrained=str(lisa / "sam.pth")), folder / "sida")


@pytest.fixture(scope="module")
def after(before: Path) -> Path:
    """`before` with [END], and every weight that the description stage trains moved at random."""
    model, tokenizer = load_for_training(before, "description")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(f"{family}." in name for family in TAUGHT) and "vision_tower" not in name:
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return save_pretrained(model, tokenizer, before.parent / "description")


def test_what_it_began_with_becomes_what_came_out(before: Path, after: Path, tmp_path: Path) -> None:
    """Every weight that the stage trains, with [END] and its row; the encoders are the base's, to the last bit."""
    model, tokenizer = load_pretrained(transfer(before, before, after, tmp_path))
    began, (ended, theirs) = load_pretrained(before)[0].state_dict(), load_pretrained(after)
    assert (model.config.stage, tokenizer.added) == ("description", theirs.added)
    for name, weight in model.state_dict().items():
        if any(part in name for part in ENCODERS):
            assert torch.equal(weight, began[name]), name
        else:
            assert torch.allclose(weight, ended.state_dict()[name], atol=1e-5), name


def test_a_larger_network_takes_it_over(before: Path, after: Path, tmp_path: Path) -> None:
    """Its language model moves as the small one's did; its pictures stay as large."""
    large = enlarge(before, tmp_path / "large", 336)
    model, _ = load_pretrained(transfer(large, before, after, tmp_path / "out"))
    was, became, base = (load_pretrained(folder)[0].state_dict() for folder in (before, after, large))
    for name in ("model.layers.0.mlp.up_proj.weight", "lm_head.weight"):
        rows = len(base[name])
        moved = became[name][:rows] - was[name]
        assert moved.abs().mean() > 0.05
        assert torch.allclose(model.state_dict()[name][:rows] - base[name], moved, atol=1e-5)
    assert model.config.image_size == 336


def test_another_network_is_refused(before: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the weight that does not fit, with its shapes; nothing is written."""
    with pytest.raises(SystemExit) as stopped:
        main(["--version", str(before), "--before", str(TINY), "--after", str(DESCRIBES), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert "expected networks that differ in their encoders' sizes alone" in error
    assert "embed_tokens.weight is [(" in error
    assert not (tmp_path / "out").exists()


def test_encoders_come_from_another_network(before: Path, tmp_path: Path) -> None:
    """All of them and the projection, to the last bit, and nothing else."""
    model, tokenizer = load_pretrained(before)
    with torch.no_grad():
        for weight in model.state_dict().values():
            weight += weight.dtype.is_floating_point
    donor = save_pretrained(model, tokenizer, tmp_path / "donor")
    mixed, began = (load_pretrained(folder)[0].state_dict() for folder in (give_encoders(before, donor, tmp_path / "out"), before))
    for name, weight in load_pretrained(donor)[0].state_dict().items():
        assert torch.equal(mixed[name], weight if any(part in name for part in ENCODERS) else began[name]), name


@pytest.mark.parametrize("flags", [[], ["--before", "a"], ["--before", "a", "--after", "b", "--encoders", "c"]])
def test_one_kind_of_transfer_at_a_time(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version", str(TINY), "--out", "nowhere", *flags])
    assert stopped.value.code == 2
    assert "give --before and --after, or --encoders" in capsys.readouterr().err


def test_encoders_of_another_size_are_refused(before: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version", str(before), "--encoders", str(TINY), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 1
    assert "expected encoders of the same sizes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
