"""The heads between the language model and SAM. Their names in the checkpoint are fixed: see SidaModel.

Dimensions: H hidden size, E = 256 prompt width, n [SEG] tokens of one image.
"""

from __future__ import annotations

from torch import Tensor, nn

from model.types import Label


def class_head(hidden: int) -> nn.ModuleList:
    """[*, H] -> [*, 3] class logits. The list and the idle dropout are in the published keys (`cls_head.0.3.weight`)."""
    return nn.ModuleList([nn.Sequential(nn.Linear(hidden, hidden // 2), nn.ReLU(), nn.Dropout(0.0), nn.Linear(hidden // 2, len(Label)))])


def seg_projection(hidden: int, out: int) -> nn.ModuleList:
    """[*, H] -> [*, E] prompt for the mask decoder (keys `text_hidden_fcs.0.0`, `.0.2`)."""
    return nn.ModuleList([nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out), nn.Dropout(0.0))])


def fuse(attention: nn.MultiheadAttention, class_prompt: Tensor, seg: Tensor) -> Tensor:
    """seg + attention(query = class prompt [E], keys = values = seg [n, E]) -> [n, E].

    With one [SEG] the softmax runs over one key: the class then has no influence (as in the paper's code).
    """
    attended, _ = attention(query=class_prompt[None], key=seg, value=seg)
    return seg + attended
