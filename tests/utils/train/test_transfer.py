"""What the description stage made of one network is added to another, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.checkpoint import load_for_training, load_pretrained, save_pretrained
from tests.scripts.launch import ROOT
from tests.tiny import build_tiny_lisa
from utils.train.enlarge import enlarge
from utils.train.transfer import main, transfer

TINY, DESCRIBES = ROOT / "ck" / "SIDA-tiny", ROOT / "ck" / "SIDA-tiny-description"
ENCODERS = ("vision_tower", "image_encoder", "mm_projector")


def test_what_it_began_with_becomes_what_came_out(tmp_path: Path) -> None:
    """Every weight that the stage trains, to fp16's rounding, with [END] and its row; the encoders are the base's, to the last bit."""
    model, tokenizer = load_pretrained(transfer(TINY, TINY, DESCRIBES, tmp_path))
    began, (ended, theirs) = load_pretrained(TINY)[0].state_dict(), load_pretrained(DESCRIBES)
    assert (model.config.stage, tokenizer.added) == ("description", theirs.added)
    for name, weight in model.state_dict().items():
        if any(part in name for part in ENCODERS):
            assert torch.equal(weight, began[name]), name
        else:
            assert torch.allclose(weight, ended.state_dict()[name], rtol=2e-3, atol=2e-3), name


def test_a_larger_network_takes_it_over(tmp_path: Path) -> None:
    """Its language model moves as the small one's did; its pictures stay as large."""
    large = enlarge(TINY, tmp_path / "large", 432)
    model, _ = load_pretrained(transfer(large, TINY, DESCRIBES, tmp_path / "out"))
    before, after, base = (load_pretrained(folder)[0].state_dict() for folder in (TINY, DESCRIBES, large))
    for name in ("model.layers.0.mlp.up_proj.weight", "lm_head.weight"):
        rows = len(base[name])
        assert torch.allclose(model.state_dict()[name][:rows] - base[name], after[name][:rows] - before[name], atol=2e-3)
    assert model.config.image_size == 432


def test_another_network_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the weight that does not fit, with its shapes; nothing is written."""
    lisa = build_tiny_lisa(tmp_path / "lisa")
    other = save_pretrained(*load_for_training(lisa, "sida", vision_pretrained=str(lisa / "sam.pth")), tmp_path / "other")
    with pytest.raises(SystemExit) as stopped:
        main(["--version", str(other), "--before", str(TINY), "--after", str(DESCRIBES), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert "expected networks that differ in their encoders' sizes alone" in error
    assert "embed_tokens.weight is [(" in error
    assert not (tmp_path / "out").exists()
