"""Flags to objects: records, model, loader."""

from __future__ import annotations

import logging
import random

import numpy as np
import torch
from torch.utils.data import DataLoader

from model.checkpoint import fill, load_for_training, load_pretrained, read_trained
from model.lora import add_lora, set_trainable
from model.losses import LossWeights
from model.sida import SIDAForCausalLM
from model.tokens import SidaTokenizer
from utils.data.augment import Augmentation, mild
from utils.data.collate import collate
from utils.data.dataset import SidaDataset, SidaProcessor
from utils.data.features import FeatureCache
from utils.data.records import Record
from utils.data.sampler import BatchStream
from utils.data.sources import read_source
from utils.distributed import world_size
from utils.train.config import TrainConfig
from utils.train.signals import ignore_signals

log = logging.getLogger(__name__)


def read_records(cfg: TrainConfig, split: str) -> list[Record]:
    """The records of `train`, or of `validation` in the data set that the flags name; errors as `read_source`."""
    root = cfg.dataset_dir if split == "train" else cfg.validation_dir
    records = read_source(root, split, descriptions=cfg.stage == "description", strict=cfg.strict)
    log.info("%s split of %s: %d images", split, root, len(records))
    return records


def loss_weights(cfg: TrainConfig) -> LossWeights:
    """The flags' weights; the original's first stage adds both mask weights up, see LossWeights."""
    shared = cfg.reference and cfg.stage == "sida"
    return LossWeights(cfg.ce_loss_weight, cfg.cls_loss_weight, cfg.mask_loss_weight, cfg.bce_loss_weight, cfg.dice_loss_weight, shared)


def trainable_model(cfg: TrainConfig, dtype: torch.dtype) -> tuple[SIDAForCausalLM, SidaTokenizer]:
    """`cfg.version` with the stage's tokens, adapters and frozen parts."""
    seed_everything(cfg.seed)  # new heads and adapters are the same on all ranks
    model, tokenizer = load_for_training(
        cfg.version,
        cfg.stage,
        vision_pretrained=cfg.sam_weights,
        reinit_heads=cfg.reference,
        dtype=dtype,
        vision_tower=cfg.vision_tower,
        conv_type=cfg.conv_type,
        image_size=cfg.image_size,
        model_max_length=cfg.model_max_length,
        out_dim=cfg.out_dim,
        mm_use_im_start_end=cfg.use_mm_start_end,
    )
    add_lora(model, cfg.lora_r, cfg.lora_alpha, cfg.lora_dropout, cfg.lora_target_modules.split(","))
    full = cfg.lora_r == 0 and not cfg.reference  # the original then trains no layer at all
    families = cfg.stage_defaults.families(compat=cfg.reference, mask_decoder=cfg.train_mask_decoder, vision=cfg.train_vision, language=full)
    families += ("lm_head",) * cfg.train_text  # a frozen one has no word for the new tokens
    log.info("%d trainable parameters: %s", set_trainable(model, families), ", ".join(("LoRA",) * (cfg.lora_r > 0) + families))
    model.train()  # the vision tower comes in eval mode, in which it would not checkpoint
    model.loss_weights = loss_weights(cfg)
    model.lockstep = world_size() > 1
    if cfg.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model, tokenizer


def compile_layers(model: SIDAForCausalLM, device: torch.device) -> bool:
    """torch.compile the layers of Llama, CLIP and SAM's image encoder in place; without a compiler warn, change nothing, return False."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(1, device=device))
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n\n")[0].split())
        log.warning("--compile has no effect, torch finds no compiler (%s): install a C++ compiler, for a GPU also triton", reason)
        return False
    net = model.model
    for layer in (*net.layers, *net.vision_tower.encoder.layers, *net.visual_model.image_encoder.blocks):
        layer.compile()
    return True


def finished_model(cfg: TrainConfig, dtype: torch.dtype, device: torch.device) -> tuple[SIDAForCausalLM, SidaTokenizer]:
    """For evaluation: the SIDA checkpoint `--version`, or the training checkpoint `--resume` on top of the base it started from."""
    if cfg.resume:
        model, tokenizer = trainable_model(cfg, dtype)
        fill(model, read_trained(cfg.resume))
        return model.eval().to(device), tokenizer
    model, tokenizer = load_pretrained(cfg.version, dtype=dtype, device=device, vision_tower=cfg.vision_tower)
    model.loss_weights = loss_weights(cfg)
    return model, tokenizer


def make_processor(cfg: TrainConfig, model: SIDAForCausalLM, tokenizer: SidaTokenizer) -> SidaProcessor:
    """The processor that fits `model`."""
    return SidaProcessor(tokenizer, model.config, train_text=cfg.train_text)


def train_dataset(cfg: TrainConfig, records: list[Record], processor: SidaProcessor, features: FeatureCache | None = None) -> SidaDataset:
    """What training draws from."""
    return SidaDataset(records, processor, augment=augmentation(cfg), features=features)


def augmentation(cfg: TrainConfig) -> Augmentation | None:
    """How --turn, --worn and --augment change training pictures."""
    if cfg.augment:
        return Augmentation(cfg.seed, turn=float(cfg.turn))
    return mild(cfg.seed, cfg.turn, cfg.worn) if cfg.turn or cfg.worn else None


def make_loader(cfg: TrainConfig, dataset: SidaDataset, stream: BatchStream, device: torch.device) -> DataLoader:
    """An endless loader of (Batch, unreadable paths)."""
    return DataLoader(
        dataset,
        batch_sampler=stream,
        num_workers=cfg.workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),  # its own, or each start of the loader would draw from the global one
    )


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, the GPU included."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
