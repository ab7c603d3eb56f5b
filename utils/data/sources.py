"""Any data set that is read here, told apart by what is there:

a folder with {split}/{real,full_synthetic,tampered}    the Drive layout, utils.data.sid_set
a folder with parquet shards, or a name on the hub      utils.data.hugging_face
a file of JSON lines                                    {"image", "mask" or null, "label", "description"?, "split"?}, paths from the file's folder
a folder with real/ and fake/                           pictures without masks; all of them whatever the split
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from model.types import Label
from utils.data import hugging_face, sid_set
from utils.data.records import Record
from utils.data.transforms import IMAGE_SUFFIXES

log = logging.getLogger(__name__)

PLAIN = {"real": Label.REAL, "fake": Label.FULL_SYNTHETIC}
MANIFEST = (".jsonl", ".json")


def read_source(source: Path | str, split: str, *, descriptions: bool = False, strict: bool = False, unmasked: bool = False) -> list[Record]:
    """The records of one split; flags as of `sid_set.read_split`. FileNotFoundError or ValueError, with the fix, for what is none."""
    path = Path(source)
    match kind_of(source):
        case "manifest":
            return read_manifest(path, split)
        case "tables":
            return hugging_face.read_table(source, split)
        case "plain":
            return read_plain(path)
    return sid_set.read_split(path, split, descriptions=descriptions, strict=strict, unmasked=unmasked)


def list_splits(source: Path | str) -> list[str]:
    """Names of its splits; ["all"] when it knows none."""
    path = Path(source)
    match kind_of(source):
        case "manifest":
            rows = [_parse(path, number, line) for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if line.strip()]
            return sorted({row["split"] for row in rows if "split" in row}) or ["all"]
        case "tables":
            return hugging_face.list_splits(source)
        case "plain":
            return ["all"]
    if not path.is_dir():
        raise FileNotFoundError(f"no data set {source}: expected a folder, a manifest or hf://datasets/OWNER/NAME")
    return sid_set.list_splits(path)


def kind_of(source: Path | str) -> str:
    """One of manifest, tables, plain, drive."""
    path = Path(source)
    if path.suffix in MANIFEST:
        return "manifest"
    if path.is_dir() and not sid_set.list_splits(path):
        if hugging_face.is_parquet(path):
            return "tables"
        if (path / "fake").is_dir():
            return "plain"
    return "tables" if str(source).startswith(hugging_face.HUB) else "drive"


def read_manifest(path: Path, split: str) -> list[Record]:
    """The lines whose "split" is `split`, or that have none. ValueError names the line that does not do."""
    if not path.is_file():
        raise FileNotFoundError(f"no manifest {path}: expected a file of JSON lines")
    records, splits = [], set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        row = _parse(path, number, line)
        splits.add(row.get("split", split))
        if row.get("split", split) == split:
            records.append(_record(path, number, row))
    if not records:
        raise ValueError(f"{path} has no line of split {split!r}" + (f": it has {sorted(splits)}" if splits else ": it is empty"))
    return records


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: not JSON: {error}") from error
    if not isinstance(row, dict) or not {"image", "label"} <= row.keys():
        raise ValueError(f'{path}, line {number}: expected {{"image", "mask" or null, "label", "description"?}}, found {line[:80]}')
    return row


def _record(path: Path, number: int, row: dict[str, Any]) -> Record:
    label = hugging_face.NAMES.get(str(row["label"]).lower().replace(" ", "_"))
    if label is None:
        raise ValueError(f"{path}, line {number}: label is {row['label']!r}, expected one of {[label.title for label in Label]}")
    mask = row.get("mask") if label is Label.TAMPERED else None
    if label is Label.TAMPERED and mask is None:
        raise ValueError(f"{path}, line {number}: {row['image']} is labelled tampered but has no mask")
    origin = {key: str(row[key]) for key in hugging_face.ORIGIN if row.get(key)}
    return Record(row["image"], path.parent / row["image"], label, path.parent / mask if mask else None, row.get("description"), origin)


def read_plain(folder: Path) -> list[Record]:
    """Pictures below real/ and fake/, at any depth; ValueError when a side has none."""
    records = []
    for name, label in PLAIN.items():
        images = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."))
        if not images:
            raise ValueError(f"no picture in {folder / name}: expected at least one file ending in {', '.join(IMAGE_SUFFIXES)}")
        records += [Record(str(path.relative_to(folder)), path, label) for path in images]
    log.warning("%s has real and fake pictures alone: fake ones count as full_synthetic, so only figures of real against fake mean what they say", folder)
    return records
