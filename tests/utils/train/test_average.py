"""utils.train.average."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import load_pretrained
from utils.train.average import main

TINY = Path("ck/SIDA-tiny")


def moved(folder: Path, by: float) -> Path:
    """A copy of SIDA-tiny whose weights are all larger by `by`."""
    shutil.copytree(TINY, folder)
    for file in (folder / "model.safetensors", folder / "vision_tower" / "model.safetensors"):
        save_file({name: weight + by if weight.is_floating_point() else weight for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})
    return folder


def test_the_mean_lies_between(tmp_path: Path) -> None:
    assert main(["--versions", str(TINY), str(moved(tmp_path / "a", 0.25)), str(moved(tmp_path / "b", -0.125)), "--out", str(tmp_path / "mean")]) == 0
    before, after = (load_pretrained(folder)[0] for folder in (TINY, tmp_path / "mean"))
    weights = after.state_dict()
    for name, weight in before.state_dict().items():
        if weight.is_floating_point():
            torch.testing.assert_close(weights[name], weight + 0.125 / 3, rtol=2e-3, atol=1e-3, msg=name)
    assert after.config.cls_temperature == 1.0
    assert (tmp_path / "mean" / "model.safetensors").stat().st_size == pytest.approx((TINY / "model.safetensors").stat().st_size, rel=0.01)


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        ([TINY], "--versions has 1 folder: expected at least two"),
        ([TINY, Path("ck/SIDA-tiny-description")], "is of another shape than ck/SIDA-tiny, e.g. in "),
        ([TINY, Path("nowhere")], "no config.json in nowhere"),
    ],
)
def test_bad_input_is_named(versions: list[Path], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as failure:
        main(["--versions", *map(str, versions), "--out", str(tmp_path / "out")])
    assert failure.value.code == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
