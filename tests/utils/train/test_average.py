"""Each weight of the mean is the mean of that weight; networks that do not match are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.checkpoint import load_for_training, load_pretrained, save_pretrained
from tests.tiny import build_tiny_lisa
from utils.train.average import average, main
from utils.train.enlarge import enlarge


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A SIDA checkpoint and two more, every weight of which is larger by 1 and by 5."""
    folder = tmp_path_factory.mktemp("three")
    lisa = build_tiny_lisa(folder / "lisa")
    model, tokenizer = load_for_training(lisa, "sida", vision_pretrained=str(lisa / "sam.pth"))
    folders = []
    for step in (0, 1, 4):
        with torch.no_grad():
            for weight in model.parameters():
                weight += step
        folders.append(save_pretrained(model, tokenizer, folder / str(step), dtype=torch.float32))
    return folders


def test_each_weight_is_the_mean(three: list[Path], tmp_path: Path) -> None:
    """(0 + 1 + 5) / 3 more than the first's."""
    first, mean = (load_pretrained(folder)[0] for folder in (three[0], average(three, tmp_path / "out")))
    for (name, weight), began in zip(mean.named_parameters(), first.parameters(), strict=True):
        assert torch.allclose(weight, began + 2, atol=1e-5), name


def test_of_itself_it_is_itself(three: list[Path], tmp_path: Path) -> None:
    began, mean = (load_pretrained(folder)[0].state_dict() for folder in (three[0], average([three[0]] * 2, tmp_path / "out")))
    assert all(torch.equal(weight, mean[name]) for name, weight in began.items())


def test_one_is_not_enough(three: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--versions", str(three[0]), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 1
    assert "expected two checkpoints or more, got" in capsys.readouterr().err


def test_another_network_is_refused(three: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    larger = enlarge(three[0], tmp_path / "larger", side=336)
    with pytest.raises(SystemExit) as stopped:
        main(["--versions", str(three[0]), str(larger), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 1
    assert "expected networks of the same sizes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
