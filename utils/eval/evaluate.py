"""Evaluate a model on a data set, teacher-forced as the original does, on any number of ranks."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from model.sida import SIDAForCausalLM
from model.types import Batch, Label, SidaOutput
from utils.data.collate import collate
from utils.data.dataset import SidaDataset
from utils.data.sampler import shard
from utils.data.transforms import SAM_SCALE, SAM_SHIFT
from utils.distributed import gather_objects, is_main, rank, world_size
from utils.eval.metrics import Scores
from utils.infer.visualize import overlay, write_picture

log = logging.getLogger(__name__)

PICTURES = 8  # mask pictures kept per evaluation


@torch.inference_mode()
def evaluate(
    model: SIDAForCausalLM,
    dataset: SidaDataset,
    *,
    batch_size: int,
    device: str | torch.device,
    dtype: torch.dtype,
    workers: int = 0,
    pictures_dir: Path | None = None,
    worker_init_fn: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Every figure of `Scores.compute`, plus `unreadable`: paths that could not be read and are in no figure.

    Every sample is seen exactly once over all ranks; the result is the same on each. ValueError if nothing could be read.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: expected at least 1")
    scores, unreadable, drawn = Scores(), [], 0
    was_training = model.training
    model.eval()
    own = list(shard(len(dataset), rank(), world_size()))
    # A rank with one sample less runs one of them again, unscored: under ZeRO-3 every rank must take part in every forward.
    spare = -(-len(dataset) // world_size()) - len(own)
    mine = Subset(dataset, own + (own[-1:] or [0]) * spare)
    pin = torch.device(device).type == "cuda"
    loader = DataLoader(mine, batch_size=batch_size, num_workers=workers, collate_fn=collate, pin_memory=pin, worker_init_fn=worker_init_fn)
    pending = len(own)
    for batch, failed in tqdm(loader, desc="evaluating", unit="batch", disable=not is_main(), mininterval=0.1 if sys.stderr.isatty() else 30):
        unreadable += failed
        pending -= len(set(failed))
        if batch is None:
            continue
        batch = batch.to(device, dtype)
        out = model(**batch.model_inputs())
        rows = min(len(batch), max(pending, 0))
        pending -= rows
        scores.update(out.cls_logits[:rows], batch.cls_labels[:rows], out.mask_logits[:rows], batch.masks[:rows], out.losses.ce)
        if pictures_dir is not None and is_main() and drawn < PICTURES and batch.images_sam.shape[1] == 3:  # pixels, not features
            drawn += _draw(batch, out, pictures_dir, PICTURES - drawn)
    model.train(was_training)
    return _figures(scores, unreadable)


def _figures(scores: Scores, unreadable: list[str]) -> dict[str, Any]:
    unreadable = sorted({path for paths in gather_objects(unreadable) for path in paths})
    with warnings.catch_warnings():  # a rank or a data set may hold no tampered image
        warnings.filterwarnings("ignore", message=".*`compute` method of metric.*before the `update` method.*")
        figures = scores.compute()
    if not figures["images"]:
        raise ValueError(f"nothing to evaluate: none of the images could be read, e.g. {unreadable[:3]}")
    if unreadable:
        log.warning("%d unreadable images are in no figure: %s", len(unreadable), unreadable[:10])
    return figures | {"unreadable": unreadable}


def _draw(batch: Batch, out: SidaOutput, folder: Path, most: int) -> int:
    """Image | truth | prediction of up to `most` tampered images as `ID.jpg`; returns how many."""
    rows = [i for i, label in enumerate(batch.cls_labels.tolist()) if label == Label.TAMPERED][:most]
    for i in rows:
        h, w = batch.resized_hw[i]
        pixels = batch.images_sam[i, :, :h, :w].float().cpu() * SAM_SCALE + SAM_SHIFT
        rgb = pixels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        truth, mask = batch.masks[i][0].cpu().numpy() > 0.5, (out.mask_logits[i][0] > 0).cpu().numpy()
        write_picture(folder / f"{Path(batch.ids[i]).stem}.jpg", np.hstack([rgb, overlay(rgb, truth, (0, 160, 0)), overlay(rgb, mask)]))
    return len(rows)
