"""A noise expert learns from patches what a picture is, and is written without what only training needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from model.noise import NoiseExpert
from model.types import Label
from tests.tiny import build_tiny_set
from utils.data.sampler import Draw
from utils.data.sid_set import read_split
from utils.train.noise import NoiseLesson, Patches, Turned, fold, load_noise, main, unfold
from utils.train.pretrain import pretrain


def test_a_folded_expert_does_what_the_trained_one_did() -> None:
    torch.manual_seed(0)
    trained = NoiseExpert(64, norm=True)
    for module in trained.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.bias.data):
                values.normal_()
            for values in (module.running_var, module.weight.data):
                values.uniform_(0.5, 2)
    plain = fold(trained.eval(), NoiseExpert(64))
    levels = torch.randint(0, 256, (2, 3, 64, 64))
    with torch.no_grad():
        torch.testing.assert_close(plain.patches(levels), trained.patches(levels), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(plain.picture(plain.patches(levels)), trained.picture(trained.patches(levels)), atol=1e-4, rtol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())


def test_an_expert_that_goes_on_starts_as_it_was_left() -> None:
    """While it learns, too: its norms start with what they find."""
    torch.manual_seed(0)
    plain = NoiseExpert(64)
    levels = torch.randint(0, 256, (4, 3, 64, 64))
    learning = unfold(plain, NoiseExpert(64, norm=True), levels)
    with torch.no_grad():
        for mode in (learning.train(), learning.eval()):
            torch.testing.assert_close(mode.patches(levels), plain.patches(levels), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(fold(learning, NoiseExpert(64)).patches(levels), plain.patches(levels), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(learning.head.weight, plain.head.weight)


def test_a_crop_shows_whole_blocks_and_is_called_what_it_shows(tmp_path: Path) -> None:
    """Each draw another one, the same whenever it is drawn; real where nothing tampered with is in it."""
    records = [record for record in read_split(build_tiny_set(tmp_path / "data", 6, sizes=((64, 64),)), "train") if record.label is Label.TAMPERED]
    whole, crops = Turned(records, 64, None, 0.0, 0), Turned(records, 64, 16, 0.0, 0)
    seen = {Label.REAL: 0, Label.TAMPERED: 0}
    for i in range(len(records)):
        for turn in range(12):
            all_of_it, part = whole[Draw(i, turn)], crops[Draw(i, turn)]
            assert part.levels.shape == (3, 16, 16)
            assert part.tampered.shape == (2, 2)
            at = [(y, x) for y in range(0, 49, 8) for x in range(0, 49, 8) if torch.equal(all_of_it.levels[:, y : y + 16, x : x + 16], part.levels)]
            assert any(torch.equal(all_of_it.tampered[y // 8 : y // 8 + 2, x // 8 : x // 8 + 2], part.tampered) for y, x in at)
            assert part.labels == (Label.TAMPERED if part.tampered.mean() >= 0.005 else Label.REAL)
            assert torch.equal(part.levels, crops[Draw(i, turn)].levels)
            seen[Label(int(part.labels))] += 1
    assert min(seen.values()) > 0


def test_it_learns_where_noise_differs_and_what_has_none() -> None:
    """Pictures of noise, of which a corner is smooth in tampered ones, and all in synthetic ones."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)

    def batch() -> Patches:
        labels = torch.arange(12) % 3
        levels = torch.from_numpy(rng.integers(90, 160, (12, 3, 64, 64), dtype=np.uint8))
        levels[labels == 1] = 120
        tampered = torch.zeros(12, 8, 8)
        for i in (labels == 2).nonzero().flatten().tolist():
            y, x = rng.integers(0, 5, 2)
            levels[i, :, 8 * y : 8 * y + 32, 8 * x : 8 * x + 32] = 120
            tampered[i, y : y + 4, x : x + 4] = 1
        return Patches(levels, tampered, labels)

    lesson = NoiseLesson(NoiseExpert(64, norm=True), 80).train()
    losses = pretrain(lesson, iter(lambda: (batch(), None), None), 40, 3e-3, bf16=False)
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    new = batch()
    with torch.no_grad():
        expert = fold(lesson.expert.eval(), NoiseExpert(64))
        told = expert(expert.picture(expert.patches(new.levels))[:, None])
    assert (told.argmax(dim=1) == new.labels).float().mean() > 0.8


def test_the_command_writes_what_load_noise_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = build_tiny_set(tmp_path / "data", sizes=((64, 64),))
    argv = ["--dataset_dir", str(data), "--crop_steps", "1", "--steps", "1", "--batch_size", "3", "--workers", "0"]
    assert main([*argv, "--crop", "32", "--out", str(tmp_path / "noise")]) == 0
    expert = load_noise(tmp_path / "noise", 100)
    assert expert.see(torch.randn(2, 3, 64, 64)).shape == (2, 1, 100)
    assert expert.sizes == NoiseExpert(64).sizes
    assert main([*argv, "--crop", "32", "--start", str(tmp_path / "noise"), "--lr", "1e-6", "--worn", "0.5", "--out", str(tmp_path / "more")]) == 0
    for name, tensor in load_noise(tmp_path / "more", 100).state_dict().items():
        if name.endswith("weight"):
            assert torch.cosine_similarity(tensor.flatten(), expert.get_parameter(name).flatten(), dim=0) > 0.9, name
    with pytest.raises(SystemExit):
        main([*argv, "--crop", "32", "--start", str(tmp_path / "absent"), "--out", str(tmp_path / "bad")])
    assert f"{tmp_path / 'absent'}/noise.safetensors does not exist" in capsys.readouterr().err
    for crop in ("60", "72"):
        with pytest.raises(SystemExit):
            main([*argv, "--crop", crop, "--out", str(tmp_path / "bad")])
        assert f"--crop is {crop}, pictures have 64 pixels a side: expected multiples of 8" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*argv, "--crop", "32", "--worn", "30", "--out", str(tmp_path / "bad")])
    assert "--worn is 30.0: expected a chance, 0 to 1" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()
