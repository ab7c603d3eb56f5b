"""--cache_features: the frozen encoders run once per picture, not once per picture and epoch."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from model.sida import SIDAForCausalLM
from model.types import Label
from utils.data.collate import collate
from utils.data.dataset import SidaDataset, SidaProcessor
from utils.data.features import FeatureCache, Features, content_key
from utils.data.records import Record
from utils.data.sampler import shard
from utils.distributed import gather_objects, is_main, rank, world_size
from utils.train.config import TrainConfig
from utils.train.engine import DTYPES
from utils.train.signals import ignore_signals

log = logging.getLogger(__name__)

SHARD = 64  # pictures
HALF = 2  # bytes of a float16


def open_cache(cfg: TrainConfig, model: SIDAForCausalLM, processor: SidaProcessor, records: Sequence[Record], device: torch.device) -> FeatureCache | None:
    """The cache that --cache_features names, filled with the features of `records`; None without the flag, or when the disk does not hold them.

    Raises ValueError for a folder that holds something else. All ranks share the work.
    """
    if not cfg.cache_features:
        return None
    cache = FeatureCache(cfg.cache_features, identity(model, DTYPES[cfg.precision]))
    pictures = {str(record.image): record for record in records}  # ids occur in several splits, a picture on several lines of a manifest
    missing = {place: record for place, record in pictures.items() if not _has(cache, record)}
    needed = sum(map(sum, gather_objects([bytes_of(model, record) for record in list(missing.values())[rank() :: world_size()]])))
    log.info("features of %d pictures in %s are there, %d are to come: %.2f GB", len(pictures) - len(missing), cfg.cache_features, len(missing), needed / 1e9)
    whole = True
    if missing:
        training = model.training
        whole = _fill(cache, model.to(device).eval(), processor, missing, cfg, device)
        model.train(training)
    if not all(gather_objects(whole)):
        return None
    cache.refresh()
    return cache


def identity(model: SIDAForCausalLM, dtype: torch.dtype) -> dict[str, object]:
    """What features depend on besides the picture: the encoders' weights, the sizes they see, what is kept of them, the precision."""
    config = model.config
    return {
        "vision_tower": fingerprint(model.model.vision_tower),
        "image_encoder": fingerprint(model.model.visual_model.image_encoder),
        "clip_size": config.clip["image_size"],
        "image_size": config.image_size,
        "layer": config.mm_vision_select_layer,
        "feature": config.mm_vision_select_feature,
        "precision": str(dtype),
        "preprocessing": 1,  # raised when utils/data/transforms.py, a stem's traces or echoes, or an expert's residuals, change what their weights get
        **{name: fingerprint(expert.eyes) for name, expert in model.model.experts.items()},
    }


def fingerprint(module: nn.Module) -> str:
    """Hash of a module's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def bytes_of(model: SIDAForCausalLM, record: Record) -> int:
    """How much one picture's features take."""
    config = model.config
    sam = config.out_dim * (config.image_size // 16) ** 2 if record.label is Label.TAMPERED else 0
    rows = config.image_patches + sum(expert.rows for expert in model.model.experts.values())
    return HALF * (rows * config.clip["hidden_size"] + sam)


def _has(cache: FeatureCache, record: Record) -> bool:
    try:
        return cache.has(content_key(record.image), sam=record.label is Label.TAMPERED)
    except OSError:  # unreadable: it will be said where it is asked for
        return True


@torch.inference_mode()
def _fill(cache: FeatureCache, model: SIDAForCausalLM, processor: SidaProcessor, missing: dict[str, Record], cfg: TrainConfig, device: torch.device) -> bool:
    """Compute and write this rank's part of what is missing, by place; False, with a warning, when the disk is too small."""
    free = shutil.disk_usage(cfg.cache_features).free
    if (needed := sum(bytes_of(model, record) for record in missing.values())) > 0.95 * free:
        log.warning("--cache_features has no effect: %.2f GB are needed in %s and %.2f GB are free", needed / 1e9, cfg.cache_features, free / 1e9)
        return False
    dataset = SidaDataset([replace(record, id=place) for place, record in missing.items()], processor, replace_unreadable=False)
    mine = Subset(dataset, list(shard(len(dataset), rank(), world_size())))
    loader = DataLoader(mine, cfg.val_batch_size, num_workers=cfg.workers, collate_fn=collate, worker_init_fn=ignore_signals)
    pending: dict[str, Features] = {}
    try:
        for batch, _ in tqdm(loader, desc="caching features", unit="batch", disable=not is_main()):
            if batch is None:
                continue
            clip = model.see(batch.images_clip.to(device, model.dtype)).cpu()
            sam = _embed(model, batch.images_sam, batch.cls_labels == Label.TAMPERED, device)
            for i, name in enumerate(batch.ids):
                pending[content_key(missing[name].image)] = Features(clip[i], sam.get(i), batch.original_hw[i])
            if len(pending) >= SHARD:
                cache.write(pending)
                pending = {}
        if pending:
            cache.write(pending)
    except OSError as error:
        log.warning("--cache_features has no effect: %s", error)
        return False
    return True


def _embed(model: SIDAForCausalLM, images: Tensor, wanted: Tensor, device: torch.device) -> dict[int, Tensor]:
    """Row -> SAM's embedding of the wanted rows."""
    rows = wanted.nonzero().flatten().tolist()
    if not rows:
        return {}
    embeddings = model.model.visual_model.encode(images[rows].to(device, model.dtype)).cpu()
    return dict(zip(rows, embeddings, strict=True))
