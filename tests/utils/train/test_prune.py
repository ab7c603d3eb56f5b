"""What of a mask decoder is not needed goes, and what stays says what all said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from model.checkpoint import load_for_training, load_pretrained, save_pretrained
from tests.tiny import build_tiny_lisa, build_tiny_set
from utils.train.prune import DECODER, main, thinned


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prune")
    return save_pretrained(*load_for_training(build_tiny_lisa(root / "lisa"), "sida"), root / "base")


def test_neurons_that_say_the_same_are_one() -> None:
    """Each of 16 occurs four times over, with weights of its own: 16 of 64 give the same output, for inputs that were not shown."""
    torch.manual_seed(0)
    first, second = nn.Linear(8, 64), nn.Linear(64, 8)
    with torch.no_grad():
        first.weight.copy_(first.weight[:16].repeat(4, 1))
        first.bias.copy_(first.bias[:16].repeat(4))
        rows, fresh = torch.randn(400, 8), torch.randn(50, 8)
        second.weight[:, :16] += 3  # so that none of the sixteen is chosen twice
        w1, b1, w2, b2 = thinned(first, second, torch.relu(first(rows)), 16)
        torch.testing.assert_close(torch.relu(fresh @ w1.T + b1) @ w2.T + b2, second(torch.relu(first(fresh))), atol=0.05, rtol=0.05)


def test_a_smaller_one_differs_in_the_decoder_alone(base: Path, tmp_path: Path) -> None:
    """And still draws, as large a mask for each prompt."""
    data = build_tiny_set(tmp_path / "data")
    assert main(["--version", str(base), "--dataset_dir", str(data), "--neurons", "32", "--out", str(tmp_path / "small")]) == 0
    (large, _), (small, _) = load_pretrained(base), load_pretrained(tmp_path / "small")
    decoder = small.model.visual_model.mask_decoder
    assert [layer.mlp.lin1.out_features for layer in decoder.transformer.layers] == [32, 32]
    assert (len(decoder.mask_tokens.weight), len(decoder.output_hypernetworks_mlps)) == (1, 1)
    was, now = large.state_dict(), small.state_dict()
    differ = {name for name in now if was[name].shape != now[name].shape or not torch.equal(was[name], now[name])}
    assert all(".mlp." in name or "iou_prediction_head" in name or "mask_tokens" in name for name in differ)
    assert all(name.startswith(DECODER) for name in {*differ, *(was.keys() - now.keys())})
    assert torch.equal(now[f"{DECODER}mask_tokens.weight"], was[f"{DECODER}mask_tokens.weight"][:1])
    with torch.no_grad():
        masks = [
            model.model.visual_model.decode(
                torch.randn(2, 256, 16, 16, generator=torch.Generator().manual_seed(0)), torch.randn(2, 256, generator=torch.Generator().manual_seed(1))
            )
            for model in (large, small)
        ]
    assert masks[0].shape == masks[1].shape == (2, 64, 64)


@pytest.mark.parametrize("neurons", ["0", "2049"])
def test_more_than_there_are_is_refused(neurons: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as failure:
        main(["--version", str(base), "--dataset_dir", str(tmp_path), "--neurons", neurons, "--out", str(tmp_path / "small")])
    assert failure.value.code == 1
    assert f"--neurons is {neurons}: expected 1 to the 2048 of" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()
