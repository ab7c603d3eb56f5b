"""An evaluation as a folder: one line per picture as soon as it is known, so an interrupted run goes on where it was.

settings.json      what was asked; another question to the same folder is refused
per_image.jsonl    a Line per picture and corruption; while it runs, one file per rank beside it
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from model.sida import SIDAForCausalLM
from utils.data.corruptions import Corruption
from utils.data.dataset import SidaDataset, SidaProcessor
from utils.data.features import FeatureCache
from utils.data.records import Record
from utils.distributed import barrier, is_main, rank, world_size
from utils.eval.judging import Line, judge

LINES = "per_image.jsonl"


def chosen(records: Sequence[Record], limit: int, seed: int) -> list[Record]:
    """All, or `limit` of them drawn without replacement, in order. ValueError when two have one id."""
    ids = [record.id for record in records]
    if len(set(ids)) < len(ids):
        twice = sorted({name for name in ids if ids.count(name) > 1})[:3] if len(ids) < 10_000 else "some"
        raise ValueError(f"ids of the data set are not unique, e.g. {twice}")
    if not 0 < limit < len(records):
        return list(records)
    return [records[i] for i in sorted(np.random.default_rng(seed).permutation(len(records))[:limit])]


def read_lines(folder: Path) -> list[Line]:
    """All finished lines; a line that was being written when a run was killed is left out."""
    lines = {}
    for path in sorted(folder.glob("per_image*.jsonl")):
        for text in path.read_text().splitlines():
            try:
                line = Line(**json.loads(text))
            except (ValueError, TypeError):
                continue
            lines[line.key] = line
    return [lines[key] for key in sorted(lines)]


def collect(
    folder: Path,
    model: SIDAForCausalLM,
    processor: SidaProcessor,
    records: Sequence[Record],
    *,
    corruptions: Sequence[str] = (),
    batch_size: int = 8,
    seed: int = 0,
    device: torch.device,
    dtype: torch.dtype,
    workers: int = 0,
    features: FeatureCache | None = None,
) -> list[Line]:
    """Judge what `folder` does not hold yet, shared out among ranks batch by batch; returns all lines, on every rank. ValueError for a batch size below 1."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: expected at least 1")
    known = read_lines(folder)
    done = {line.key for line in known}
    barrier()
    if is_main():
        merge(folder, known)  # what a kill cut off in the middle would swallow the next line
    barrier()
    todo = [(name, batch) for name in ("", *corruptions) for batch in batches(records, batch_size) if any((name, records[i].id) not in done for i in batch)]
    mine = todo[rank() :: world_size()]
    bar = tqdm(
        total=sum(len(batch) for _, batch in todo), desc="evaluating", unit="image", disable=not is_main(), mininterval=0.1 if sys.stderr.isatty() else 30
    )
    with (folder / f"per_image.{rank()}.jsonl").open("a") as out:
        for name in dict.fromkeys(name for name, _ in mine):
            change, known = (Corruption(name, seed), None) if name else (None, features)
            dataset = SidaDataset(records, processor, replace_unreadable=False, augment=change, features=known)
            own = [batch for other, batch in mine if other == name]
            for lines in judge(model, dataset, own, name, device, dtype, workers):
                out.writelines(json.dumps(line.to_dict()) + "\n" for line in lines)
                out.flush()
                bar.update(len(lines) * world_size())
    barrier()
    lines = read_lines(folder)
    barrier()
    if is_main():
        merge(folder, lines)
    barrier()
    return lines


def batches(records: Sequence[Record], size: int) -> Iterator[list[int]]:
    """Indices, cut before anything is shared out or skipped: a picture's neighbours in its batch are always the same."""
    for start in range(0, len(records), size):
        yield list(range(start, min(start + size, len(records))))


def merge(folder: Path, lines: Sequence[Line]) -> None:
    """One sorted file in place of the ranks'."""
    fresh = folder / f"{LINES}.new"
    fresh.write_text("".join(json.dumps(line.to_dict()) + "\n" for line in lines))
    os.replace(fresh, folder / LINES)
    for path in folder.glob("per_image.*.jsonl"):
        path.unlink()
