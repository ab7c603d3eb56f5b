"""Every way in which a data set may come, written small with exactly its columns and read back."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from torch.utils.data import DataLoader, IterableDataset

from model.types import Label
from utils.data.dataset import decode
from utils.data.hugging_face import read_table, stream_table
from utils.data.records import Record
from utils.data.sources import read_source

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left in the user's cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def png(seed: int, mask: bool = False) -> bytes:
    rng = np.random.default_rng(seed)
    pixels = 255 * rng.integers(0, 2, (8, 10), dtype=np.uint8) if mask else rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


def cell(content: bytes | None) -> dict[str, bytes | None] | None:
    return None if content is None else {"bytes": content, "path": None}


PICTURE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


@pytest.fixture
def sid_set(tmp_path: Path) -> Path:
    """Nine rows in three shards; ids repeat across classes, masks of real pictures are black."""
    schema = pyarrow.schema(
        [
            ("img_id", pyarrow.string()),
            ("image", PICTURE),
            ("mask", PICTURE),
            ("width", pyarrow.int64()),
            ("height", pyarrow.int64()),
            ("label", pyarrow.int64()),
        ]
    )
    (tmp_path / "data").mkdir()
    for shard in range(3):
        rows = [
            {"img_id": f"{shard}", "image": cell(png(10 * shard + label)), "mask": cell(png(50 + shard, mask=True)), "width": 10, "height": 8, "label": label}
            for label in range(3)
        ]
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema), tmp_path / "data" / f"validation-0000{shard}-of-00003.parquet")
    return tmp_path


@pytest.fixture
def so_fake(tmp_path: Path) -> Path:
    """Four rows, one of which is only a link."""
    names = ("scope", "label", "authenticity", "source_type", "source_name", "source_platform", "generator", "editor", "release_form", "filename", "version")
    schema = pyarrow.schema(
        [
            ("id", pyarrow.string()),
            *((name, pyarrow.string()) for name in names),
            ("width", pyarrow.int64()),
            ("height", pyarrow.int64()),
            ("image", PICTURE),
            ("mask", PICTURE),
        ]
    )
    rows = [
        {"id": "r", "scope": "REAL", "source_platform": "Reddit", "image": cell(png(1)), "mask": None},
        {"id": "s", "scope": "FULL_SYNTHETIC", "generator": "Flux", "image": cell(png(2)), "mask": None},
        {"id": "t", "scope": "TAMPERED", "generator": "GPT-4o", "image": cell(png(3)), "mask": cell(png(4, mask=True))},
        {"id": "link", "scope": "REAL", "image": None, "mask": None},
    ]
    parquet.write_table(
        pyarrow.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema), tmp_path / "test_image-00000-of-00001.parquet"
    )
    return tmp_path


def seen(records: list[Record]) -> dict[str, tuple]:
    """Everything but the place, decoded."""
    out = {}
    for record in records:
        rgb, gray = decode(record)
        out[record.id] = (record.label, rgb.tobytes(), None if gray is None else gray.tobytes(), dict(record.origin))
    assert len(out) == len(records)
    return out


def test_sid_set_by_both_routes(sid_set: Path) -> None:
    records = read_source(sid_set, "validation")
    assert [record.label for record in records] == [Label.REAL, Label.FULL_SYNTHETIC, Label.TAMPERED] * 3
    assert [record.id for record in records[:3]] == ["real/0", "full_synthetic/0", "tampered/0"]
    assert all((record.mask is None) == (record.label is not Label.TAMPERED) for record in records)
    np.testing.assert_array_equal(decode(records[4])[0], cv2.imdecode(np.frombuffer(png(11), np.uint8), 1)[..., ::-1])
    assert seen(records) == seen(list(stream_table(sid_set, "validation")))
    assert "validation][4].image" in str(records[4].image)


def test_so_fake_ood_by_both_routes(so_fake: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        records = read_table(so_fake, "test_image")
        streamed = list(stream_table(so_fake, "test_image"))
    assert [message.split(": ")[1][:24] for message in caplog.messages] == ["1 of 4 rows hold no image", "1 rows hold no image, onl"] or len(
        caplog.messages
    ) == 2
    assert seen(records) == seen(streamed)
    assert {record.id: dict(record.origin) for record in records} == {
        "real/r": {"source_platform": "Reddit"},
        "full_synthetic/s": {"generator": "Flux"},
        "tampered/t": {"generator": "GPT-4o"},
    }


class Ids(IterableDataset):
    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.rank = folder, rank

    def __iter__(self) -> Iterator[str]:
        return (record.id for record in stream_table(self.folder, "validation", self.rank, 2))


def test_shards_are_shared_out_without_overlap(sid_set: Path) -> None:
    """Two ranks, two workers each."""
    parts = [[name for batch in DataLoader(Ids(sid_set, rank), batch_size=2, num_workers=2) for name in batch] for rank in range(2)]
    assert sorted(parts[0] + parts[1]) == sorted(record.id for record in read_table(sid_set, "validation"))
    assert all(parts)


def test_unknown_split_columns_and_labels(sid_set: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no shard of split 'test' .* found \['validation-00000"):
        read_source(sid_set, "test")
    bad = tmp_path / "bad"
    bad.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist([{"image": cell(png(0)), "label": 7}]), bad / "train.parquet")
    with pytest.raises(ValueError, match=r"train\]\[0\]: label is 7, expected one of"):
        read_source(bad, "train")
    parquet.write_table(pyarrow.Table.from_pylist([{"picture": 1}]), bad / "train.parquet")
    with pytest.raises(ValueError, match=r"columns are \['picture'\]: expected image"):
        read_source(bad, "train")


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_manifest(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "m.png").write_bytes(png(2, mask=True))
    rows = [
        {"image": "a.png", "mask": "m.png", "label": "tampered", "description": "why", "split": "test"},
        {"image": "a.png", "mask": None, "label": "real", "generator": "x"},
    ]
    path = write_lines(tmp_path / "set.jsonl", *rows)
    both = read_source(path, "test")
    assert [(record.label, record.description, dict(record.origin)) for record in both] == [(Label.TAMPERED, "why", {}), (Label.REAL, None, {"generator": "x"})]
    assert decode(both[0])[1].shape == (8, 10)
    assert len(read_source(path, "train")) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON"),
        ('{"image": "a.png"}', "line 1: expected"),
        ('{"image": "a.png", "label": "maybe"}', "line 1: label is 'maybe'"),
        ('{"image": "a.png", "label": 2}', "line 1: a.png is labelled tampered but has no mask"),
        ('{"image": "a.png", "label": 0, "split": "x"}', r"no line of split 'train': it has \['x'\]"),
        ("", "no line of split 'train': it is empty"),
    ],
)
def test_bad_manifest(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "set.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        read_source(tmp_path / "set.jsonl", "train")


def test_plain_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("real/a.JPG", "fake/deep/b.webp"):
        (tmp_path / name).parent.mkdir(parents=True)
        cv2.imwrite(str(tmp_path / name), np.zeros((4, 4, 3), np.uint8))
    records = read_source(tmp_path, "validation")
    assert [(record.id, record.label) for record in records] == [("real/a.JPG", Label.REAL), ("fake/deep/b.webp", Label.FULL_SYNTHETIC)]
    assert "only figures of real against fake" in caplog.text
    (tmp_path / "real/a.JPG").unlink()
    with pytest.raises(ValueError, match="no picture in .*real"):
        read_source(tmp_path, "validation")


def test_drive_layout_and_what_is_none(tmp_path: Path) -> None:
    examples = Path(__file__).parents[3] / "examples" / "SID_handful"
    assert {record.label for record in read_source(examples, "test")} == set(Label)
    with pytest.raises(FileNotFoundError, match="no data set folder"):
        read_source(tmp_path / "none", "train")
    with pytest.raises(FileNotFoundError, match="no manifest"):
        read_source(tmp_path / "none.jsonl", "train")
