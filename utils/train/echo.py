"""A vision tower with a stem is shown where pictures repeat themselves (model/echoes.py), so that a moved copy can be told from a splice.

    python -m utils.train.echo --version ck/SIDA-tiny-description --dataset_dir data/SID_384 --steps 300 --out runs/tiny-echo

A small convolution learns alone which patches are copies, from the data set's masks and descriptions; everything else stays. What it finds is added to a
patch's embedding along a random direction, and to all of the picture's along another, each twice as strong as the embedding: what comes after has to learn what
they mean.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from model.checkpoint import load_pretrained, save_pretrained
from model.types import Batch
from model.vision import Echoed, TraceStem
from utils.data.augment import mild
from utils.data.collate import collate
from utils.data.dataset import SidaDataset, SidaProcessor
from utils.data.explanation import parse
from utils.data.records import Record
from utils.data.sampler import BatchStream
from utils.data.sid_set import read_split
from utils.train.pretrain import patch_share, pretrain
from utils.train.signals import ignore_signals

COPY = "copy-move"  # what descriptions call it
OTHERS = 2  # pictures without a copy for one with
STRENGTH = 2.0  # of each direction, of a patch's embedding


def is_copy(record: Record) -> bool:
    """Whether its description says that a part of the picture was copied within it."""
    return parse(record.description or "").type == COPY


def chosen(records: Sequence[Record]) -> list[Record]:
    """All pictures with copies, and OTHERS times as many without, evenly from the rest. ValueError when there are none of either."""
    copies = [record for record in records if is_copy(record)]
    rest = [record for record in records if not is_copy(record)]
    if not copies or not rest:
        raise ValueError(f"{len(copies)} of {len(records)} pictures are described as {COPY!r}: expected some, and some that are not; SID_Mini has both")
    return copies + rest[:: max(1, len(rest) // (OTHERS * len(copies)))]


class CopyProbe(nn.Module):
    """Whether patches, and the picture, are copies."""

    def __init__(self, stem: TraceStem, records: Sequence[Record]) -> None:
        super().__init__()
        self.echoed, self.levels = stem.echoed, stem.levels
        self.copies = {record.id for record in records if is_copy(record)}

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy of the picture, and of its patches."""
        logits = self.echoed.logits(self.levels(batch.images_clip)).float()
        copied = torch.tensor([float(name in self.copies) for name in batch.ids])
        share = patch_share(batch, logits.shape[-1]) * copied.view(-1, 1, 1)
        return F.binary_cross_entropy_with_logits(self.echoed.picture(logits), copied), F.binary_cross_entropy_with_logits(logits, share)


def add_echo(version: str | Path, dataset_dir: str, out: str | Path, *, steps: int, batch_size: int, lr: float, workers: int, seed: int) -> Path:
    """Write the checkpoint `version` with echoes in its tower to `out`. ValueError for a tower without a stem, or as `chosen`."""
    torch.manual_seed(seed)
    model, tokenizer = load_pretrained(version)
    stem = model.model.vision_tower.embeddings.patch_embedding
    if not isinstance(stem, TraceStem):
        raise ValueError(f"the vision tower of {version} has no stem (`stem` in its config.json): only SIDA-tiny's sort can be shown echoes")
    records = chosen(read_split(dataset_dir, "train", descriptions=True))
    stem.echoed = Echoed(model.config.clip["hidden_size"])
    for fields in (model.config.clip, vars(model.model.vision_tower.config)):
        fields["stem"] = fields["stem"] | {"echoes": True}
    dataset = SidaDataset(records, SidaProcessor(tokenizer, model.config), augment=mild(seed))
    stream = BatchStream(dataset.labels, batch_size, seed=seed, mixing="mixed")
    loader = DataLoader(dataset, batch_sampler=stream, num_workers=workers, collate_fn=collate, worker_init_fn=ignore_signals)
    batches = iter(loader)
    pretrain(CopyProbe(stem, records).train(), batches, steps, lr, bf16=False)
    with torch.no_grad():
        batch, _ = next(batches)
        strength = stem(batch.images_clip).square().mean().sqrt() * STRENGTH  # the directions are zero so far
        stem.echoed.directions.normal_().mul_(strength)
    model.config.cls_temperature, model.config.calibrated_on = 1.0, 0
    return save_pretrained(model, tokenizer, out, dtype=model.config.dtype)


def main(argv: Sequence[str] | None = None) -> int:
    """Add echoes from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", required=True, help="checkpoint to start from")
    parser.add_argument("--dataset_dir", required=True, help="SID_Mini, or another set that describes copies as such; its train split is used")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, help="folder to write")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        add_echo(**vars(args))
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
