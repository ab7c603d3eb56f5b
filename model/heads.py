"""The heads between the language model and SAM. Their names in the checkpoint are fixed: see SidaModel.

Dimensions: H hidden size, E = 256 prompt width, n [SEG] tokens of one image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from model.types import Label


def class_head(hidden: int) -> nn.ModuleList:
    """[*, H] -> [*, 3] class logits. The list and the idle dropout are in the published keys (`cls_head.0.3.weight`)."""
    return nn.ModuleList([nn.Sequential(nn.Linear(hidden, hidden // 2), nn.ReLU(), nn.Dropout(0.0), nn.Linear(hidden // 2, len(Label)))])


def seg_projection(hidden: int, out: int) -> nn.ModuleList:
    """[*, H] -> [*, E] prompt for the mask decoder (keys `text_hidden_fcs.0.0`, `.0.2`)."""
    return nn.ModuleList([nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out), nn.Dropout(0.0))])


def fuse(attention: nn.MultiheadAttention, class_prompts: Tensor, segs: list[Tensor]) -> list[Tensor]:
    """seg + attention(query = class prompt, keys = values = seg) of each image: [B, E] and B x [n, E] -> B x [n, E], n > 0.

    With one [SEG] the softmax runs over one key: the class then has no influence (as in the paper's code).
    """
    keys = pad_sequence(segs, batch_first=True)
    counts = torch.tensor([len(seg) for seg in segs], device=keys.device)
    absent = torch.arange(keys.shape[1], device=keys.device) >= counts[:, None]
    attended, _ = attention(query=class_prompts[:, None], key=keys, value=keys, key_padding_mask=absent if absent.any() else None)
    return [seg + extra for seg, extra in zip(segs, attended, strict=True)]
