"""The baseline: our own plain implementation of what the original does. Same weights, same inputs, same answers; slow in the original's ways.

For each new token CLIP and the whole prefix again, no KV cache; attention written out; the vocabulary scored at every position; SAM's encoder for
every picture of a batch, one by one, with a mask to draw or not; validation one picture at a time; resizing and normalising step by step.

Dimensions: B images, T tokens, H hidden size, S side of SAM's input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionModel

from model.losses import mask_losses
from model.sida import SIDAForCausalLM
from model.tokens import IGNORE_INDEX
from model.types import SAM_MEAN, SAM_STD, Batch, Label
from utils.data.collate import collate
from utils.data.conversation import answer as answer_text
from utils.data.conversation import encode, question
from utils.data.dataset import SidaProcessor
from utils.data.records import Record, Sample
from utils.infer.decode import Question, Reading


@contextmanager
def attention_written_out(model: SIDAForCausalLM) -> Iterator[None]:
    """The packages' own attention, scores in memory, instead of fused kernels."""
    towers = [module.config for module in model.modules() if isinstance(module, CLIPVisionModel)]
    configs = [model.config, *towers]
    before = [config._attn_implementation for config in configs]
    fused = [(module, vars(module).pop("forward")) for module in model.model.visual_model.modules() if "forward" in vars(module)]
    for config in configs:
        config._attn_implementation = "eager"
    try:
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name
        for module, forward in fused:
            module.forward = forward


@torch.inference_mode()
def answer(model: SIDAForCausalLM, asked: Question, tokens: int) -> Reading:
    """Write `tokens` tokens, each from scratch; the class, and for a tampered picture the mask at the [SEG] of a teacher-forced answer."""
    ids = torch.tensor([asked.prompt_ids])
    with attention_written_out(model):
        for _ in range(tokens):
            out = model(ids, images_clip=asked.images_clip)
            ids = torch.cat([ids, out.logits[:, -1:].argmax(dim=-1)], dim=1)
        start = len(asked.prompt_ids)
        cls_logits = model.class_logits(out.hidden[:, start - 1], model.see(asked.images_clip))
        embedding = model.model.visual_model.encode(asked.images_sam)  # whatever the class
        masks = None
        if int(cls_logits.argmax()) == Label.TAMPERED:
            told = torch.tensor([asked.prompt_ids + asked.tampered_ids])
            state = model(told, images_clip=asked.images_clip).hidden[0, -1:]
            (low_res,) = model.low_res_masks(embedding, [state], cls_logits)
            masks = model.model.visual_model.upscale(low_res, asked.resized_hw, asked.original_hw)
    return Reading(cls_logits[0], masks, ids[0, start:].tolist())


def forward(model: SIDAForCausalLM, batch: Batch) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Total loss, class logits [B, 3] and mask logits B x [n, h, w] of a training or validation batch."""
    net = model.model
    embeddings = torch.cat([net.visual_model.encode(image[None]) for image in batch.images_sam])
    features = model.see(batch.images_clip)
    hidden = net(inputs_embeds=model.embed(batch.input_ids, features), attention_mask=batch.attention_mask).last_hidden_state
    logits = model.lm_head(hidden)
    cls_logits = model.classify(hidden, batch.input_ids, features)
    masks = []
    for i, states in enumerate(model.seg_states(hidden, batch.input_ids)):
        size = batch.resized_hw[i]
        if not len(states):
            masks.append(torch.zeros(0, *size))
            continue
        (low_res,) = model.low_res_masks(embeddings[i : i + 1], [states], cls_logits[i : i + 1])
        masks.append(net.visual_model.upscale(low_res, size, size))
    ce = logits.sum() * 0.0
    if model.loss_weights.ce and (batch.labels[:, 1:] != IGNORE_INDEX).any():
        ce = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch.labels[:, 1:].flatten())
    losses = model.loss_weights.combine(ce, F.cross_entropy(cls_logits.float(), batch.cls_labels), *mask_losses(masks, batch.masks))
    return losses.total, cls_logits, masks


@torch.inference_mode()
def validate(model: SIDAForCausalLM, samples: Sequence[Sample]) -> list[Tensor]:
    """Class logits [3] of each picture, asked alone, its true answer given."""
    with attention_written_out(model):
        return [forward(model, collate([sample])[0])[1][0] for sample in samples]


def load(record: Record, processor: SidaProcessor) -> Sample:
    """What `processor.sample` gives, by the libraries' general tools."""
    config = processor.config
    rgb = cv2.cvtColor(cv2.imread(str(record.image)), cv2.COLOR_BGR2RGB)
    side = config.clip["image_size"]
    clip = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    image_clip = clip.preprocess(rgb, return_tensors="pt")["pixel_values"][0]
    scale = config.image_size / max(rgb.shape[:2])
    h, w = (max(1, int(x * scale + 0.5)) for x in rgb.shape[:2])
    resized = torch.from_numpy(np.array(Image.fromarray(rgb).resize((w, h), Image.Resampling.BILINEAR))).permute(2, 0, 1).contiguous()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (SAM_MEAN, SAM_STD))
    image_sam = F.pad((resized - mean) / std, (0, config.image_size - w, 0, config.image_size - h))
    gray = np.zeros(rgb.shape[:2], np.uint8) if record.mask is None else cv2.imread(str(record.mask), cv2.IMREAD_GRAYSCALE)
    mask = torch.from_numpy(np.array(Image.fromarray(gray).resize((w, h), Image.Resampling.BILINEAR)) / 255.0).float()[None]
    ids, labels = encode(processor.tokenizer, config, question(config.stage), answer_text(record.label, config.stage, record.description))
    return Sample(record.id, torch.tensor(ids), torch.tensor(labels), image_clip, image_sam, mask, record.label, (h, w), rgb.shape[:2])
