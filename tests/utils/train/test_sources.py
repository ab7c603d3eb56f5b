"""Training takes every source of pictures: the same pictures as parquet shards or as a manifest are the same training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import train_SIDA
from utils.data.records import Record
from utils.data.sid_set import read_split

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
SPLITS = ("train", "validation")


def as_manifest(root: Path) -> Path:
    path = root / "set.jsonl"
    rows = [
        {"image": str(record.image.relative_to(root)), "mask": record.mask and str(record.mask.relative_to(root)), "label": record.label.title, "split": split}
        for split in SPLITS
        for record in read_split(root / "set", split)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_parquet(root: Path) -> Path:
    """SID_Set's columns, two shards a split."""
    picture = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    kinds = {"img_id": pyarrow.string(), "image": picture, "mask": picture, "width": pyarrow.int64(), "height": pyarrow.int64(), "label": pyarrow.int64()}
    folder = root / "tables" / "data"
    folder.mkdir(parents=True)

    def row(record: Record) -> dict[str, object]:
        image, mask = ({"bytes": path.read_bytes(), "path": None} if path else None for path in (record.image, record.mask))
        return {"img_id": record.id, "image": image, "mask": mask, "width": 1, "height": 1, "label": int(record.label)}

    for split in SPLITS:
        rows = [row(record) for record in read_split(root / "set", split)]
        for shard in range(2):
            part = rows[shard * len(rows) // 2 : (shard + 1) * len(rows) // 2]
            parquet.write_table(pyarrow.Table.from_pylist(part, pyarrow.schema(kinds)), folder / f"{split}-{shard:05d}-of-00002.parquet")
    return folder.parent


def losses(place: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", place / "cache")
    where = ["--version", place / "lisa", "--dataset_dir", source, "--log_base_dir", place / "runs", "--exp_name", source.stem, "--vis_save_path", place / "vis"]
    size = ["--precision", "fp32", "--batch_size", 2, "--grad_accumulation_steps", 1, "--epochs", 1, "--steps_per_epoch", 4, "--workers", 0, "--val_batch_size", 4]
    assert train_SIDA.main([str(word) for word in [*where, *size]]) == 0
    figures = json.loads((place / "runs" / source.stem / "validation.jsonl").read_text().splitlines()[-1])
    rows = [json.loads(line) for line in (place / "runs" / source.stem / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row] + [figures["accuracy"], figures["giou"]]


@pytest.mark.parametrize("written", [as_manifest, as_parquet])
def test_the_same_pictures_train_the_same(place: Path, written: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(place)
    assert losses(place, source, monkeypatch) == losses(place, place / "set", monkeypatch)
