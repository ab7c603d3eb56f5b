"""Full training with the real scripts: the trained vision tower is in the merged folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import merge_lora_weights_and_save_hf_model as merge_script
import train_SIDA
from model import checkpoint
from model.checkpoint import load_pretrained, read_tensors, read_trained
from tests.tiny import build_tiny_lisa, build_tiny_set


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`lisa`, `set`, and `runs/full` after two steps."""
    root = tmp_path_factory.mktemp("full")
    build_tiny_lisa(root / "lisa")
    build_tiny_set(root / "set", per_class=2)
    where = ["--version", root / "lisa", "--dataset_dir", root / "set", "--vision_pretrained", root / "lisa" / "sam.pth", "--log_base_dir", root / "runs"]
    size = ["--precision", "fp32", "--batch_size", 2, "--grad_accumulation_steps", 2, "--epochs", 1, "--steps_per_epoch", 2, "--workers", 0, "--no_eval"]
    full = ["--train_vision", "--lora_r", 0, "--augment", "--lr", 0.001, "--warmup_steps", 0, "--exp_name", "full", "--batch_mixing", "mixed"]
    assert train_SIDA.main([str(word) for word in where + size + full]) == 0
    return root


def merge(place: Path, base: Path, weight: Path, name: str, *more: str) -> int:
    return merge_script.main(["--version", str(base), "--weight", str(weight), "--save_path", str(place / name), "--precision", "fp32", *more])


def check(place: Path, name: str) -> None:
    """`name` holds the weights of the run, the tower among them, and not the base's."""
    trained = dict(read_trained(place / "runs" / "full"))
    base = load_pretrained_tower(place / "lisa" / "vision_tower")
    model, _ = load_pretrained(place / name)
    assert model.config.vision_tower == "vision_tower"
    merged = {checkpoint.canonical(key): value for key, value in model.state_dict().items()}
    assert all(torch.equal(merged[key], value) for key, value in trained.items() if "inv_freq" not in key)
    changed = [key for key in base if not torch.equal(merged["model.vision_tower." + key], base[key])]
    assert any("patch_embedding" in key for key in changed)
    assert any("layers.0.self_attn.q_proj.weight" in key for key in changed)
    before = dict(read_tensors(place / "lisa"))
    for part in ("mm_projector", "image_encoder", "model.layers.1.mlp", "model.norm"):
        assert any(not torch.equal(merged[key], before[key]) for key in before if part in key), part


def load_pretrained_tower(folder: Path) -> dict[str, torch.Tensor]:
    return {key.removeprefix("vision_model."): value for key, value in read_tensors(folder)}


def test_the_merged_folder_holds_the_trained_tower(place: Path) -> None:
    assert merge(place, place / "lisa", place / "runs" / "full", "merged") == 0
    check(place, "merged")


@pytest.mark.parametrize("alone", [False, True])
def test_a_trained_tower_from_the_hub_is_saved_inside(place: Path, monkeypatch: pytest.MonkeyPatch, alone: bool) -> None:
    """The base only names its tower; the weights come with the run's args.json, or alone with --train_vision."""
    base, weight = place / f"hub{alone}", place / "runs" / "full"
    shutil.copytree(place / "lisa", base)
    shutil.rmtree(base / "vision_tower")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"vision_tower": "someone/clip", "mm_vision_tower": "someone/clip"}))
    load_tower = checkpoint.load_tower
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "load_tower", lambda name, folder, dtype: load_tower(name.replace("someone/clip", str(place / "lisa" / "vision_tower")), folder, dtype))
        if alone:
            torch.save(dict(read_trained(weight)), place / "weights.bin")
            weight = place / "weights.bin"
        assert merge(place, base, weight, f"merged_hub{alone}", *["--train_vision"] * alone) == 0
    check(place, f"merged_hub{alone}")


def test_weights_without_a_tower_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({key: value for key, value in read_trained(place / "runs" / "full") if "vision_tower" not in key}, place / "towerless.bin")
    assert merge(place, place / "lisa", place / "towerless.bin", "no", "--train_vision") == 1
    assert "model.vision_tower." in capsys.readouterr().err
