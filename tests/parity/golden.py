"""The tiny model of the goldens, rebuilt from (key, shape) alone, and helpers to compare with the stored numbers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.checkpoint import allocate, canonical, fill
from model.config import SidaConfig
from model.lora import add_lora, merge_lora, set_trainable
from model.sida import SIDAForCausalLM
from model.tokens import SidaTokenizer
from model.types import Batch
from tests.parity.det import det
from utils.data.collate import collate
from utils.data.dataset import SidaProcessor
from utils.data.sid_set import read_split

DATA = Path(__file__).parent / "data"
NEW = ("text_hidden_fcs.", "cls_head.", "sida_fc1.", "attention_layer.")
SAM = {"embed_dim": 32, "depth": 2, "num_heads": 2, "global_attn_indexes": [1]}
TRAINABLE = {
    "sida": ("embed_tokens", "mask_decoder", "text_hidden_fcs", "cls_head", "sida_fc1", "attention_layer", "post_attention_layernorm"),
    "description": ("lm_head", "mask_decoder", "cls_head", "embed_tokens"),
}


@cache
def load_json(name: str) -> Any:
    return json.loads((DATA / f"{name}.json").read_text())


@cache
def load_npz(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(DATA / f"{name}.npz"))


def tokenizer(stage: str = "sida") -> SidaTokenizer:
    tokens = SidaTokenizer(DATA / "tokenizer.model", load_json("tiny-lisa/added_tokens"))
    tokens.add_tokens(["[CLS]", "[SEG]"] if stage == "sida" else ["[CLS]", "[SEG]", "[END]"])
    return tokens


def config(stage: str = "sida") -> SidaConfig:
    out = SidaConfig.from_pretrained(DATA / "tiny-lisa", sam=SAM, stage=stage)
    out.clip = {k: v for k, v in load_json("tiny-clip/config").items() if k in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size")}
    out.model_max_length = 512 if stage == "sida" else 1024
    return out


def _tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(det(key, tuple(shape)))


def _tower() -> dict[str, Tensor]:
    return {"model.vision_tower." + k.removeprefix("vision_model."): _tensor("clip." + k, s) for k, s in load_json("tiny_keys")["clip"].items() if "position_ids" not in k}


def stage1_state(mask_decoder: str = "sam") -> dict[str, Tensor]:
    """Canonical name -> tensor: LISA, SAM and CLIP with the new heads, the [CLS] rows and LoRA, all from det()."""
    out = _tower()
    for name, shape in load_json("tiny_keys")["stage1_peft"].items():
        key = canonical(name)
        if "vision_tower" in key or "inv_freq" in key:
            continue
        if any(part in key for part in NEW) or "lora_" in key or ("mask_decoder" in key and mask_decoder == "sida"):
            out[key] = _tensor("sida." + key, shape)
        elif "visual_model" in key:
            out[key] = _tensor("sam." + key.removeprefix("model.visual_model."), shape)
        elif "embed_tokens" in key or "lm_head" in key:
            out[key] = torch.cat([_tensor("lisa." + key, (shape[0] - 1, shape[1])), _tensor("sida.new." + key, (1, shape[1]))])
        else:
            out[key] = _tensor("lisa." + key, shape)
    return out


def stage1_model(mask_decoder: str = "sam") -> SIDAForCausalLM:
    """The network as the original's train_SIDA.py would train it, weights of the goldens."""
    model = allocate(config(), tokenizer(), torch.float32)
    add_lora(model, 8, 16, 0.0, ["q_proj", "v_proj"])
    fill(model, stage1_state(mask_decoder).items())
    set_trainable(model, TRAINABLE["sida"])
    return model.train()


def merged_model() -> SIDAForCausalLM:
    """tiny-sida: stage 1 with LoRA folded in."""
    model = stage1_model("sida")
    merge_lora(model)
    return model.eval()


def description_model() -> SIDAForCausalLM:
    """The description stage from tiny-sida: heads, LoRA and [END] rows from det(), SAM from its file."""
    base = {canonical(k): v for k, v in merged_model().state_dict().items()}
    sam = {k: v for k, v in stage1_state("sam").items() if "visual_model" in k}
    model = allocate(config("description"), tokenizer("description"), torch.float32)
    add_lora(model, 8, 16, 0.0, ["q_proj", "v_proj"])
    state = {}
    for key, own in ((canonical(k), v) for k, v in model.state_dict().items()):
        if any(part in key for part in NEW) or "lora_" in key:
            state[key] = _tensor("sidadesc." + key, own.shape)
        elif key in ("model.embed_tokens.weight", "lm_head.weight"):
            state[key] = torch.cat([base[key], _tensor("sidadesc.new." + key, (1, own.shape[1]))])
        else:
            state[key] = sam.get(key, base.get(key))
    fill(model, state.items())
    set_trainable(model, TRAINABLE["description"])
    return model.train()


@cache
def samples(stage: str = "sida") -> dict[str, Any]:
    """File name -> sample of the four golden pictures, resized by Pillow as the original does: what is compared with them is the network."""
    processor = SidaProcessor(tokenizer(stage), config(stage))
    records = read_split(DATA / "images", "train", descriptions=stage == "description")
    with mock.patch("utils.data.transforms.resize", pillow_resize):
        return {record.image.name: processor.sample(record) for record in records}


def pillow_resize(array: np.ndarray, size: tuple[int, int], mode: str = "bilinear") -> np.ndarray:
    """In place of `utils.data.transforms.resize`."""
    return np.asarray(Image.fromarray(array).resize(size[::-1], getattr(Image.Resampling, mode.upper())))


BATCHES = {
    "tampered_pair": ("tampered_0.png", "tampered_1.png"),
    "real": ("real_0.jpg",),
    "full_synthetic": ("full_synthetic_0.png",),
    "tampered0": ("tampered_0.png",),
    "real_syn_mixed": ("real_0.jpg", "full_synthetic_0.png"),
    "tampered1_no_text": ("tampered_1.png",),
}


def batch(name: str, stage: str = "sida") -> Batch:
    """The golden batch called `name`."""
    return collate([samples(stage)[file] for file in BATCHES[name]])[0]


def close(ours: Tensor | np.ndarray | float, golden: Any, rtol: float = 1e-5) -> None:
    """Largest difference relative to the golden's largest magnitude (at least its own scale) is below `rtol`."""
    a = np.asarray(ours.detach() if isinstance(ours, Tensor) else ours, dtype=np.float64)
    b = np.asarray(golden, dtype=np.float64)
    assert a.shape == b.shape, f"{a.shape} != {b.shape}"
    worst = np.abs(a - b).max() if a.size else 0.0
    scale = np.abs(b).max() if b.size else 1.0
    assert worst <= rtol * max(scale, 1e-6), f"difference {worst:.3e} at scale {scale:.3e}: {worst / max(scale, 1e-6):.2e} > {rtol}"
