"""A network for larger pictures is the same network but for its tables of positions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint import load_pretrained, save_pretrained
from model.sam import _distances, _import_modeling
from utils.infer.pipeline import SidaPipeline
from utils.train.enlarge import enlarge, main, stretched

TINY = Path(__file__).resolve().parents[3] / "ck" / "SIDA-tiny"


def test_of_its_own_size_nothing_changes(tmp_path: Path) -> None:
    """Every weight, to the last bit."""
    model, _ = load_pretrained(TINY)
    same, _ = load_pretrained(enlarge(TINY, tmp_path, model.config.image_size))
    for name, weight in same.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_a_larger_one_looks_at_more_patches(tmp_path: Path) -> None:
    """It answers, from 27 x 27 patches; what is no position is as it was; it is not calibrated, and has not learned turned pictures of that size."""
    model, _ = load_pretrained(TINY)
    pipe = SidaPipeline.from_pretrained(enlarge(TINY, tmp_path, 432), device="cpu")
    assert pipe.model.config.image_patches == 27 * 27 + 1
    assert (pipe.model.config.views, pipe.model.config.cls_temperature) == (1, 1.0)
    differ = {name for name, weight in pipe.model.state_dict().items() if not torch.equal(weight, model.state_dict()[name])}
    assert differ == {name for name in differ if "pos" in name}
    assert len(differ) == 2 + 2 * model.config.sam["depth"]
    answer = pipe.detect(np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8))
    assert sum(answer.probs.values()) == pytest.approx(1)


def test_a_deeper_one_is_the_same_before_it_is_trained(tmp_path: Path) -> None:
    """A layer more in each encoder, global in SAM's; both encoders see what they saw, and all weights of the new layers but their ends are there to learn from."""
    (model, _), (deep, _) = load_pretrained(TINY), load_pretrained(enlarge(TINY, tmp_path, layers=1))
    assert deep.config.clip["num_hidden_layers"] == model.config.clip["num_hidden_layers"] + 1
    assert deep.config.sam["global_attn_indexes"] == [*model.config.sam["global_attn_indexes"], model.config.sam["depth"]]
    assert (deep.config.views, deep.config.cls_temperature) == (model.config.views, 1.0)
    pixels = torch.randn(1, 3, model.config.image_size, model.config.image_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(deep.see(pixels), model.see(pixels), atol=1e-5)
        assert torch.allclose(deep.model.visual_model.encode(pixels), model.model.visual_model.encode(pixels), atol=1e-5)
    for layer in (deep.model.visual_model.image_encoder.blocks[-1], deep.model.vision_tower.encoder.layers[-1]):
        zero = {name for name, weight in layer.named_parameters() if name.endswith("weight") and not weight.any()}
        assert zero in ({"attn.proj.weight", "mlp.lin2.weight"}, {"self_attn.out_proj.weight", "mlp.fc2.weight"})


def test_relative_positions_are_sams() -> None:
    """What the package itself makes of a table for another size."""
    table = torch.randn(31, 4, generator=torch.Generator().manual_seed(0))
    theirs = _import_modeling().image_encoder.get_rel_pos(24, 24, table)
    assert torch.allclose(stretched("blocks.0.attn.rel_pos_h", table, torch.Size([47, 4]))[_distances(24, table.device)], theirs)


def test_places_keep_their_direction() -> None:
    """What rises evenly downwards still does, and does not change sideways, in both encoders' tables; the class token's row is no place and stays."""
    grid = torch.arange(16.0)[:, None, None].expand(16, 16, 4)
    sam = stretched("image_encoder.pos_embed", grid[None], torch.Size([1, 24, 24, 4]))[0]
    table = torch.cat([torch.full((1, 4), 7.0), grid.reshape(-1, 4)])
    tower = stretched("embeddings.position_embedding.weight", table, torch.Size([577, 4]))
    assert torch.equal(tower[0], table[0])
    for done in (sam, tower[1:].reshape(24, 24, 4)):
        assert torch.allclose(done[4:-4].diff(dim=0), torch.tensor(16 / 24), atol=0.1)  # the filter does not keep lines quite straight, least at the edges
        assert torch.allclose(done, done[:, :1], atol=1e-5)


def test_fewer_layers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--layers is -1: expected 0 or more"):
        enlarge(TINY, tmp_path, layers=-1)


def test_a_tower_whose_last_layer_is_not_looked_at_gets_none(tmp_path: Path) -> None:
    """CLIP's in LLaVA: another layer would move what is seen."""
    model, tokenizer = load_pretrained(TINY)
    model.config.mm_vision_select_layer = -2
    sida = save_pretrained(model, tokenizer, tmp_path / "sida")
    with pytest.raises(ValueError, match="--layers is 1, but .* looks at layer -2 of its tower, not the last: expected 0"):
        enlarge(sida, tmp_path / "deep", layers=1)


@pytest.mark.parametrize("side", ["250", "0"])
def test_a_side_that_is_not_whole_patches_is_refused(side: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its value, with what would do; nothing is written."""
    with pytest.raises(SystemExit) as stopped:
        main(["--version", str(TINY), "--side", side, "--out", str(tmp_path)])
    assert stopped.value.code == 1
    assert f"--side is {side}: expected a positive multiple of the patches' 16 and 16 pixels" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
