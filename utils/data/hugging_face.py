"""SID_Set, SID_Set_description and So-Fake-OOD as they are published: parquet shards, in a folder or on the Hugging Face hub.

    SID_Set       img_id, image, mask, width, height, label (0 real, 1 full synthetic, 2 tampered)
    So-Fake-OOD   id, scope (REAL, FULL_SYNTHETIC, TAMPERED), image, mask, generator, source_platform, ...; rows may be a link without an image

Pictures stay where they are, encoded, until they are asked for.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.types import Label
from utils.data.records import Record, Stored

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

log = logging.getLogger(__name__)

HUB = "hf://datasets/"
IDS, LABELS, TEXTS = ("img_id", "id", "filename"), ("scope", "label"), ("description", "text")
ORIGIN = ("generator", "editor", "source_platform", "source_type", "source_name")  # columns that figures are broken down by
NAMES = {label.title: label for label in Label} | {str(int(label)): label for label in Label}


@dataclass(frozen=True)
class Cell:
    """A picture in a table on disk."""

    column: Dataset  # with this one column
    row: int
    name: str

    def read_bytes(self) -> bytes:
        """The file. OSError when the cell names a file that is absent."""
        return _bytes(self.column[self.row][self.column.column_names[0]])

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Loaded:
    """A picture of a stream."""

    content: bytes
    name: str

    def read_bytes(self) -> bytes:
        """The file."""
        return self.content

    def __str__(self) -> str:
        return self.name


def is_parquet(folder: Path) -> bool:
    """Whether there are shards anywhere below `folder`."""
    return folder.is_dir() and next(folder.rglob("*.parquet"), None) is not None


def list_splits(source: Path | str) -> list[str]:
    """Names of the splits: of a folder what its shards' names begin with, or, of a hub data set, what its card says."""
    if str(source).startswith(HUB):
        from datasets import get_dataset_split_names

        return get_dataset_split_names(str(source).removeprefix(HUB))
    return sorted({re.sub(r"-\d+-of-\d+$", "", shard.stem) for shard in Path(source).rglob("*.parquet")})


def read_table(source: Path | str, split: str) -> list[Record]:
    """All records of a split, memory-mapped, in the table's order.

    Rows without an image are counted and skipped. FileNotFoundError for an unknown split, ValueError for columns or labels that do not fit.
    """
    from datasets import Dataset

    table = _encoded(_load(source, split, streaming=False))
    assert isinstance(table, Dataset)
    columns = {name: table.select_columns(name) for name in ("image", "mask") if name in table.column_names}
    # presence is read from the column without its bytes
    present = {name: _present(column) for name, column in columns.items()}
    rest = table.remove_columns(list(columns))
    records = []
    for i, row in enumerate(rest):
        cells = {name: Cell(column, i, f"{source}[{split}][{i}].{name}") for name, column in columns.items() if present[name][i]}
        records.append(_record(row | cells, i, source, split))
    return _kept(records, source, split)


def stream_table(source: Path | str, split: str, rank: int = 0, world: int = 1) -> Iterator[Record]:
    """The records of a split as they are read; shards are shared out over ranks, and over a DataLoader's workers, without overlap."""
    from datasets.distributed import split_dataset_by_node

    table = split_dataset_by_node(_encoded(_load(source, split, streaming=True)), rank, world)
    skipped = 0
    for i, row in enumerate(table):
        pictures = {name: Loaded(_bytes(row[name]), f"{source}[{split}][{i} of rank {rank}].{name}") for name in ("image", "mask") if _held(row.get(name))}
        record = _record({name: value for name, value in row.items() if name not in ("image", "mask")} | pictures, i, source, split)
        skipped += record is None
        if record is not None:
            yield record
    if skipped:
        log.warning("%s, split %s: %d rows hold no image, only a link, and were skipped", source, split, skipped)


def _load(source: Path | str, split: str, streaming: bool) -> Dataset | IterableDataset:
    """The split's shards: of a folder those whose names begin with it, or, of a hub data set, what its card says."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError("reading parquet shards needs the package datasets: pip install datasets") from error

    if str(source).startswith(HUB):
        return load_dataset(str(source).removeprefix(HUB), split=split, streaming=streaming)
    folder = Path(source)
    shards = sorted(folder.rglob("*.parquet"))
    chosen = [str(shard) for shard in shards if shard.name.startswith(f"{split}-") or shard.stem == split or shard.parent.name == split]
    if not chosen:
        raise FileNotFoundError(f"no shard of split {split!r} in {folder}: expected {split}-*.parquet, found {[shard.name for shard in shards[:5]]}")
    return load_dataset("parquet", data_files={split: chosen}, split=split, streaming=streaming)


def _encoded(table: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Pictures as {bytes, path} instead of decoded ones."""
    from datasets import Image

    names = table.column_names
    if "image" not in names:
        raise ValueError(f"columns are {names}: expected image, mask, and one of {', '.join(LABELS)}")
    for name in ("image", "mask"):
        if name in names:
            table = table.cast_column(name, Image(decode=False))
    return table


def _present(column: Dataset) -> list[bool]:
    name = column.column_names[0]
    chunks = column.data.column(name).chunks
    parts = ((chunk, chunk.field("bytes"), chunk.field("path")) for chunk in chunks)
    return list(
        itertools.chain.from_iterable(
            [
                cell and (data or path)
                for cell, data, path in zip(chunk.is_valid().to_pylist(), data.is_valid().to_pylist(), path.is_valid().to_pylist(), strict=True)
            ]
            for chunk, data, path in parts
        )
    )


def _held(cell: Mapping[str, Any] | None) -> bool:
    return cell is not None and (cell["bytes"] is not None or cell["path"] is not None)


def _bytes(cell: Mapping[str, Any]) -> bytes:
    return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()


def _record(row: Mapping[str, Any], i: int, source: Path | str, split: str) -> Record | None:
    """None for a row without an image."""
    image: Stored | None = row.get("image")
    if image is None:
        return None
    label = _label(row, f"{source}[{split}][{i}]")
    mask = row.get("mask") if label is Label.TAMPERED else None  # SID_Set gives the others a black one
    name = next((str(row[key]) for key in IDS if row.get(key) is not None), str(i))
    text = next((row[key] for key in TEXTS if row.get(key)), None)
    origin = {key: str(row[key]) for key in ORIGIN if row.get(key) not in (None, "")}
    return Record(f"{label.title}/{name}", image, label, mask, text, origin)


def _label(row: Mapping[str, Any], where: str) -> Label:
    value = next((row[key] for key in LABELS if row.get(key) is not None), None)
    label = NAMES.get(str(value).lower().replace(" ", "_"))
    if label is None:
        raise ValueError(f"{where}: label is {value!r}, expected one of {sorted(NAMES)} in column {' or '.join(LABELS)}")
    return label


def _kept(records: Iterable[Record | None], source: Path | str, split: str) -> list[Record]:
    records = list(records)
    kept = [record for record in records if record is not None]
    if len(kept) < len(records):
        log.warning("%s, split %s: %d of %d rows hold no image, only a link, and are skipped", source, split, len(records) - len(kept), len(records))
    if not kept:
        raise ValueError(f"{source}, split {split}: none of {len(records)} rows holds an image")
    return kept
