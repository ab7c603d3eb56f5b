"""Features of frozen encoders: the same training without the encoders, and a cache that is never silently wrong."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import train_SIDA
from model.vision import VisionTower
from tests.scripts.launch import together
from utils.data.features import FeatureCache, Features, content_key
from utils.train.config import TrainConfig


def flags(place: Path, name: str, *more: object) -> list[str]:
    where = ["--version", place / "lisa", "--dataset_dir", place / "set", "--log_base_dir", place / "runs", "--exp_name", name, "--vis_save_path", place / "vis"]
    size = ["--precision", "fp32", "--batch_size", 2, "--grad_accumulation_steps", 1, "--epochs", 1, "--steps_per_epoch", 4, "--workers", 0]
    return [str(word) for word in [*where, *size, "--lr", 0.001, "--warmup_steps", 1, "--val_batch_size", 4, "--lora_dropout", 0, *more]]


def losses(place: Path, name: str) -> list[float]:
    return [json.loads(line)["loss"] for line in (place / "runs" / name / "log.jsonl").read_text().splitlines() if '"loss"' in line]


def test_training_is_the_same_and_the_encoders_rest(place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """To the rounding of float16; the second run does not call the encoders, the third one shares the cache between two processes."""
    caplog.set_level(logging.INFO)
    assert train_SIDA.main(flags(place, "plain")) == 0
    assert train_SIDA.main(flags(place, "first", "--cache_features", place / "cache")) == 0
    assert "24 are to come: 0.0" in caplog.text  # 4 of each class in two splits
    monkeypatch.setattr(VisionTower, "forward", lambda *_, **__: pytest.fail("the vision tower ran again"))
    assert train_SIDA.main(flags(place, "second", "--cache_features", place / "cache")) == 0
    assert losses(place, "second") == losses(place, "first") == pytest.approx(losses(place, "plain"), rel=2e-3)
    figures = [json.loads((place / "runs" / name / "validation.jsonl").read_text().splitlines()[-1]) for name in ("plain", "second")]
    assert figures[0]["accuracy"] == figures[1]["accuracy"]
    assert figures[0]["giou"] == pytest.approx(figures[1]["giou"], abs=0.01)


def test_two_processes_fill_and_use_one_cache(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    together(2, "train_SIDA", *flags(place, "two", "--cache_features", place / "shared", "--no_eval", "--workers", 1))
    assert train_SIDA.main(flags(place, "one", "--cache_features", place / "shared", "--no_eval", "--grad_accumulation_steps", 2)) == 0
    assert "12 pictures" in caplog.text
    assert "0 are to come" in caplog.text
    assert losses(place, "two") == pytest.approx(losses(place, "one"), rel=1e-5)


def test_two_processes_may_claim_one_folder_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one is about to rename its note, or has done so and written a shard, after this one looked."""
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "cache.0123abcd").write_text("{}")
    FeatureCache(tmp_path / "half", {"layer": -2})
    (tmp_path / "whole").mkdir()
    features, listed = {"key": Features(torch.ones(2, 3), None, (4, 5))}, Path.iterdir

    def overtaken(folder: Path) -> list[Path]:
        seen = list(listed(folder))
        monkeypatch.undo()
        FeatureCache(folder, {"layer": -2}).write(features)
        return seen

    monkeypatch.setattr(Path, "iterdir", overtaken)
    assert "key" in FeatureCache(tmp_path / "whole", {"layer": -2})


def test_a_killed_fill_is_taken_up(place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What was renamed counts, what was not does not."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("utils.train.features.SHARD", 4)
    written, write = [], FeatureCache.write

    def killed(self: FeatureCache, features: dict[str, Features]) -> None:
        if written:
            (self.folder / "half.tmp").write_bytes(b"half a shard")
            raise KeyboardInterrupt
        written.append(len(features))
        write(self, features)

    monkeypatch.setattr(FeatureCache, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        train_SIDA.main(flags(place, "killed", "--cache_features", place / "taken", "--no_eval"))
    monkeypatch.setattr(FeatureCache, "write", write)
    assert train_SIDA.main(flags(place, "again", "--cache_features", place / "taken", "--no_eval")) == 0
    assert written == [4]
    assert f"features of 4 pictures in {place / 'taken'} are there, 8 are to come" in caplog.text


def test_a_picture_on_several_lines_is_counted_once(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    rows = [{"image": str(path), "mask": None, "label": "real", "split": "train"} for path in sorted((place / "set" / "train" / "real").iterdir())]
    manifest = place / "lines.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows * 3))
    lines = [*flags(place, "lines", "--cache_features", place / "lines", "--no_eval"), "--dataset_dir", str(manifest)]
    assert train_SIDA.main(lines) == 0
    assert f"features of 0 pictures in {place / 'lines'} are there, {len(rows)} are to come" in caplog.text


def test_a_full_disk_is_said_once_and_training_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FeatureCache, "write", full)
    assert train_SIDA.main(flags(place, "full", "--cache_features", place / "full", "--no_eval")) == 0
    assert caplog.text.count("--cache_features has no effect") == 1
    assert len(losses(place, "full")) == 4
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**4))
    monkeypatch.setattr("utils.train.checkpoints.save", lambda *_, **__: True)  # which looks at the disk too
    caplog.clear()
    assert train_SIDA.main(flags(place, "small", "--cache_features", place / "small", "--no_eval")) == 0
    assert "GB are needed in" in caplog.text


def test_a_stale_or_foreign_folder_is_refused(place: Path, tmp_path: Path) -> None:
    FeatureCache(tmp_path / "cache", {"image_size": 256, "layer": -2})
    with pytest.raises(ValueError, match=r"computed by something else \(image_size: 256 there, 1024 here\): give another folder"):
        FeatureCache(tmp_path / "cache", {"image_size": 1024, "layer": -2})
    with pytest.raises(ValueError, match=r"is not a cache of features: it has files but no cache\.json"):
        FeatureCache(place / "set", {})
    assert train_SIDA.main(flags(place, "a", "--cache_features", tmp_path / "real", "--no_eval")) == 0
    with pytest.raises(SystemExit, match="precision: torch.float32 there, torch.bfloat16 here"):
        train_SIDA.main([*flags(place, "b", "--cache_features", tmp_path / "real", "--no_eval"), "--precision", "bf16"])


def test_a_changed_picture_has_no_entry(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache", {"layer": -2})
    (tmp_path / "a.png").write_bytes(b"one")
    key = content_key(tmp_path / "a.png")
    cache.write({key: Features(torch.ones(2, 3), None, (4, 5))})
    again = FeatureCache(tmp_path / "cache", {"layer": -2})
    assert again[key].original_hw == (4, 5)
    assert again[key].clip.dtype == torch.float16
    assert again.has(key, sam=False)
    assert not again.has(key, sam=True)
    (tmp_path / "a.png").write_bytes(b"two")
    assert content_key(tmp_path / "a.png") not in again
    (shard,) = (tmp_path / "cache").glob("*.safetensors")
    assert set(load_file(shard)) == {f"{key}.clip", f"{key}.hw"}


@pytest.mark.parametrize("flag", ["train_vision", "turn", "augment"])
def test_what_changes_cannot_be_kept(flag: str) -> None:
    with pytest.raises(ValueError, match=f"--cache_features with --{flag}"):
        TrainConfig(cache_features="x", precision="fp32", **{flag: True})
