"""Encoders learn patch by patch; everything else of the base stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from model.checkpoint import load_tower, read_tensors
from model.config import CLIP_DEBUG, SAM_DEBUG
from model.types import Batch, Label
from tests.tiny import build_tiny_lisa, build_tiny_set
from utils.data.records import Record
from utils.train.pretrain import MAX_KINDS, TAMPERED_WEIGHT, PatchClasses, learning_rate, main, patch_share


def batch(labels: list[int], masks: list[torch.Tensor]) -> Batch:
    n = len(labels)
    empty = torch.zeros(n, 1, dtype=torch.long)
    return Batch(empty, empty.bool(), empty, torch.zeros(n, 3, 32, 32), torch.zeros(n, 3, 32, 32), torch.tensor(labels), masks, [(32, 32)] * n, [(32, 32)] * n, list("abc"[:n]))


def test_patches_take_their_share_of_the_mask() -> None:
    mask = torch.zeros(1, 32, 32)
    mask[0, :16, :8] = 1
    made = batch([2, 1, 0], [mask, mask[:0], mask[:0]])
    assert_close(patch_share(made, 2), torch.tensor([[[0.5, 0], [0, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]]))
    classes = PatchClasses([Record("a", Path("a.png"), Label.TAMPERED)]).of(made, 2)
    assert_close(classes[0], torch.tensor([[0.5, 0, 0.5], [1, 0, 0], [1, 0, 0], [1, 0, 0]]))
    assert_close(classes[1], torch.tensor([0.0, 1, 0]).expand(4, 3))
    assert_close(classes[2], torch.tensor([1.0, 0, 0]).expand(4, 3))


def test_a_tampered_patch_is_of_its_pictures_kind() -> None:
    texts = {"a": "Type: splicing. Areas: a small area.", "b": "Type: removal. Areas: a small area."}
    patches = PatchClasses([Record(name, Path(name), Label.TAMPERED, description=text) for name, text in texts.items()] + [Record("c", Path("c"), Label.REAL)])
    assert patches.kinds == ["removal", "splicing"]
    mask = torch.zeros(1, 32, 32)
    mask[0, :16, :16] = 1
    made = batch([2, 2, 0], [mask, mask, mask[:0]])
    classes = patches.of(made, 2)
    assert_close(classes[0, 0], torch.tensor([0.0, 0, 0, 1]))
    assert_close(classes[1, 0], torch.tensor([0.0, 0, 1, 0]))
    assert_close(classes[:, 1:], torch.tensor([1.0, 0, 0, 0]).expand(3, 3, 4))
    logits = torch.zeros(3, 4, 4)
    assert_close(patches.loss(logits, made), torch.tensor(4.0).log() * (10 + 2 * TAMPERED_WEIGHT) / 12)


def test_free_wording_names_no_kinds(caplog: pytest.LogCaptureFixture) -> None:
    records = [Record(str(i), Path(f"{i}.png"), Label.TAMPERED, description=f"Type: edit number {i}. Areas: a small area.") for i in range(MAX_KINDS + 1)]
    assert len(PatchClasses(records)) == 3
    assert "17 different types" in caplog.text
    assert len(PatchClasses(records[1:])) == 2 + MAX_KINDS


def test_a_mask_smaller_than_the_input_lies_at_the_upper_left() -> None:
    made = batch([2], [torch.ones(1, 16, 32)])
    assert_close(patch_share(made, 2)[0], torch.tensor([[1.0, 1], [0, 0]]))


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(step, 1000, 1.0) for step in range(1000)]
    assert rates[0] == pytest.approx(0.005)
    assert max(rates) == pytest.approx(0.92, abs=0.03)
    assert rates[-1] == pytest.approx(0.01, abs=1e-3)


def test_only_the_encoders_change_and_the_loss_falls(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base, data = build_tiny_lisa(tmp_path / "base"), build_tiny_set(tmp_path / "data", per_class=2, splits=("train",))
    before, tower = dict(read_tensors(base)), load_tower("vision_tower", base, torch.float32).state_dict()
    caplog.set_level("INFO")
    argv = ["--steps", "100", "--batch_size", "2", "--lr", "0.001", "--precision", "fp32", "--workers", "0"]
    assert main(["--version", str(base), "--dataset_dir", str(data), *argv]) == 0
    after = dict(read_tensors(base))
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("model.visual_model.image_encoder.") for name in changed)
    again = load_tower("vision_tower", base, torch.float32).state_dict()
    assert any(not torch.equal(tower[name], again[name]) for name in tower)
    assert "mean loss of the last 100" in caplog.text


def test_both_stems_get_what_one_learned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And nothing else changes before the encoders' own steps."""
    stem = {"stem": {"width": 8, "depth": 1, "phases": True}}
    base = build_tiny_lisa(tmp_path / "base", clip=CLIP_DEBUG | stem, sam=SAM_DEBUG | stem)
    data = build_tiny_set(tmp_path / "data", per_class=2, splits=("train",))
    before, tower = dict(read_tensors(base)), load_tower("vision_tower", base, torch.float32).state_dict()
    caplog.set_level("INFO")
    argv = ["--stem_steps", "200", "--steps", "0", "--batch_size", "2", "--precision", "fp32", "--workers", "0"]
    assert main(["--version", str(base), "--dataset_dir", str(data), *argv]) == 0
    after, again = dict(read_tensors(base)), load_tower("vision_tower", base, torch.float32).state_dict()
    sam_stem, tower_stem = "model.visual_model.image_encoder.patch_embed.proj.", "embeddings.patch_embedding."
    assert {name for name in before if not torch.equal(before[name], after[name])} == {name for name in before if name.startswith(sam_stem)}
    assert {name for name in tower if not torch.equal(tower[name], again[name])} == {name for name in tower if name.startswith(tower_stem)}
    for name in (name for name in again if name.startswith(tower_stem)):
        assert_close(again[name], after[name.replace(tower_stem, sam_stem)], rtol=0, atol=0)
    first, last = (float(line.split()[-1]) for line in caplog.messages if "mean loss" in line)
    assert last < first


def test_without_stems_there_is_nothing_to_do_first(tmp_path: Path) -> None:
    base, data = build_tiny_lisa(tmp_path / "base"), build_tiny_set(tmp_path / "data", per_class=2, splits=("train",))
    with pytest.raises(ValueError, match="--stem_steps 0"):
        main(["--version", str(base), "--dataset_dir", str(data), "--stem_steps", "1", "--workers", "0"])


def test_a_missing_base_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        main(["--version", str(tmp_path), "--dataset_dir", str(tmp_path)])
