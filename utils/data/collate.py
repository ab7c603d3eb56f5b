"""Samples to a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from model.tokens import IGNORE_INDEX, PAD_TOKEN_ID
from model.types import Batch, Label
from utils.data.records import Sample, Unreadable


def collate(items: Sequence[Sample | Unreadable]) -> tuple[Batch | None, list[str]]:
    """The batch of the readable samples (None when there is none) and the paths that could not be read.

    Shapes as in Batch; rows are padded on the right. `masks` are [1, h, w] for tampered samples and [0, h, w] for the others.
    """
    samples = [item for item in items if isinstance(item, Sample)]
    unreadable = [path for item in items for path in (item.unreadable if isinstance(item, Sample) else (item.path,))]
    return (_batch(samples) if samples else None), unreadable


def _batch(samples: list[Sample]) -> Batch:
    input_ids = pad_sequence([s.input_ids for s in samples], batch_first=True, padding_value=PAD_TOKEN_ID)
    return Batch(
        input_ids=input_ids,
        attention_mask=input_ids != PAD_TOKEN_ID,
        labels=pad_sequence([s.labels for s in samples], batch_first=True, padding_value=IGNORE_INDEX),
        images_clip=torch.stack([s.image_clip for s in samples]),
        images_sam=torch.stack([s.image_sam for s in samples]),
        cls_labels=torch.tensor([int(s.label) for s in samples]),
        masks=[s.mask if s.label is Label.TAMPERED else s.mask[:0] for s in samples],
        resized_hw=[s.resized_hw for s in samples],
        original_hw=[s.original_hw for s in samples],
        ids=[s.id for s in samples],
    )
