"""A stem learns by itself where copies are; what it finds is added, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from model.checkpoint import load_for_training, load_pretrained, save_pretrained
from model.config import CLIP_DEBUG
from tests.tiny import build_tiny_lisa, build_tiny_set
from utils.train.echo import STRENGTH, main

STEM = {"width": 8, "depth": 1, "phases": True}
SIDE = 128


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SIDA checkpoint whose tower has a stem."""
    folder = tmp_path_factory.mktemp("echo")
    lisa = build_tiny_lisa(folder / "lisa", clip=CLIP_DEBUG | {"patch_size": 16, "image_size": SIDE, "stem": STEM})
    return save_pretrained(*load_for_training(lisa, "sida"), folder / "base")


def write_set(root: Path, count: int) -> Path:
    """Textures, tampered ones in turn with a part copied and with a part of another."""
    for label in ("real", "tampered", "full_synthetic", "masks", "description"):
        (root / "train" / label).mkdir(parents=True)
    rng, texts = np.random.default_rng(0), {}

    def texture() -> np.ndarray:
        smooth = cv2.GaussianBlur(rng.normal(size=(SIDE, SIDE, 3)), (0, 0), 3)
        return np.clip(128 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)

    for i in range(count):
        rgb, mask = texture(), np.zeros((SIDE, SIDE), np.uint8)
        cv2.imwrite(str(root / "train" / "real" / f"{i}.png"), texture())
        cv2.imwrite(str(root / "train" / "full_synthetic" / f"{i}.png"), texture())
        top, left = rng.integers(0, 16, 2)
        rgb[top + 64 : top + 112, left + 64 : left + 112] = (texture() if i % 2 else rgb)[top : top + 48, left : left + 48]
        mask[top + 64 : top + 112, left + 64 : left + 112] = 255
        cv2.imwrite(str(root / "train" / "tampered" / f"{i}.png"), rgb)
        cv2.imwrite(str(root / "train" / "masks" / f"{i}_mask.png"), mask)
        texts[f"{i}.png"] = f"Type: {'splicing' if i % 2 else 'copy-move'}. Areas: the lower right of the image."
    (root / "train" / "description" / "tampered_GT.json").write_text(json.dumps(texts))
    return root


def test_copies_are_learned_and_nothing_else_changes(base: Path, tmp_path: Path) -> None:
    """Pictures with a copy come first by their strongest patches; without the directions the tower sees what it saw before."""
    data = write_set(tmp_path / "data", 12)
    argv = ["--dataset_dir", str(data), "--steps", "120", "--batch_size", "6", "--workers", "0"]
    assert main(["--version", str(base), *argv, "--out", str(tmp_path / "more")]) == 0
    (model, _), (more, _) = load_pretrained(base), load_pretrained(tmp_path / "more")
    assert more.config.clip["stem"] == STEM | {"echoes": True}
    new = {name for name in more.state_dict() if name not in model.state_dict()}
    assert new
    assert all(".patch_embedding.echoed." in name for name in new)
    assert all(torch.equal(weight, more.state_dict()[name]) for name, weight in model.state_dict().items())
    stem = more.model.vision_tower.embeddings.patch_embedding
    with torch.no_grad():
        rgb = [torch.from_numpy(cv2.imread(str(data / "train" / "tampered" / f"{i}.png"))[..., ::-1].copy()).permute(2, 0, 1) for i in range(12)]
        strongest = stem.echoed.picture(stem.echoed.logits(torch.stack(rgb).float()))
        assert strongest[0::2].min() > strongest[1::2].max()
        pixels = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        directions = stem.echoed.directions.clone()
        stem.echoed.directions.zero_()
        embedded = stem(pixels).square().mean().sqrt()
        assert 0.2 < directions.square().mean().sqrt() / (STRENGTH * embedded) < 5
        torch.testing.assert_close(more.see(pixels), model.see(pixels), atol=1e-5, rtol=0)


def test_a_set_without_copies_is_refused(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version", str(base), "--dataset_dir", str(build_tiny_set(tmp_path / "data")), "--out", str(tmp_path / "more")])
    assert "0 of 9 pictures are described as 'copy-move': expected some, and some that are not" in capsys.readouterr().err
    assert not (tmp_path / "more").exists()


def test_a_tower_without_a_stem_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CLIP's own."""
    clip = save_pretrained(*load_for_training(build_tiny_lisa(tmp_path / "lisa"), "sida"), tmp_path / "clip")
    with pytest.raises(SystemExit):
        main(["--version", str(clip), "--dataset_dir", str(tmp_path), "--out", str(tmp_path / "more")])
    assert "has no stem" in capsys.readouterr().err
