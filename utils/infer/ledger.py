"""A folder of results that grows line by line: an interrupted run goes on where it was, and no other run may write to it."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.distributed import barrier, is_main

SETTINGS, RECORDS, TABLE = "settings.json", "predictions.jsonl", "predictions.csv"


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make `folder` the place of a run with these settings, on every rank. ValueError when it holds another's."""
    path = folder / SETTINGS
    settings = json.loads(json.dumps(settings))
    if path.is_file():
        found = json.loads(path.read_text())
        wrong = [f"{name}: {found.get(name)!r} there, {settings.get(name)!r} here" for name in {**found, **settings} if found.get(name) != settings.get(name)]
        if wrong:
            raise ValueError(f"{folder} holds the results of other settings ({'; '.join(wrong)}): give another --out, or delete it")
    barrier()  # all have looked before one writes
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=1) + "\n")
    barrier()


class Ledger:
    """The records of pictures in OUT/predictions.jsonl. What could not be read is tried again by the next run."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        claim(folder, settings)
        self.folder = folder
        kept = {record["file"]["name"]: record for record in self.read() if "error" not in record}
        self.done = {name: record["file"]["sha256"] for name, record in kept.items()}
        fresh = folder / f"{RECORDS}.new"
        fresh.write_text("".join(map(_line, kept.values())))
        os.replace(fresh, folder / RECORDS)  # a line that a kill cut off would swallow the next

    def read(self) -> list[dict[str, Any]]:
        """All whole records so far."""
        path = self.folder / RECORDS
        records = []
        for line in path.read_text().splitlines() if path.is_file() else ():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
        return records

    def append(self, record: Mapping[str, Any]) -> None:
        """Keep one more; it is on disk when this returns."""
        with (self.folder / RECORDS).open("a") as file:
            file.write(_line(record))

    def write_table(self) -> Path:
        """The same as a table, one line per picture, nested fields as a.b."""
        rows = [dict(_flat(record)) for record in self.read()]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        path = self.folder / TABLE
        with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        return path


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _flat(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for name, value in record.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, json.dumps(value) if isinstance(value, list) else value)]
    return pairs
