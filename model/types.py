"""What flows through the network.

Dimensions: B batch, T tokens (image patches included), H hidden size, S side of SAM's square input,
h x w an image or mask at its own size, n masks of one image (one per [SEG]), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

Size = tuple[int, int]  # (height, width) in pixels

# normalised pixels are (x - mean) / std, x of CLIP in 0..1, of SAM in grey levels 0..255
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SAM_MEAN, SAM_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class Label(IntEnum):
    """The three verdicts; the values are the rows of the class head."""

    REAL = 0
    FULL_SYNTHETIC = 1
    TAMPERED = 2

    @property
    def title(self) -> str:
        """Lower-case name as data set folders and reports spell it, e.g. `full_synthetic`."""
        return self.name.lower()

    @classmethod
    def parse(cls, name: str) -> Label:
        """The label called `name` (`real`, `full_synthetic`, `tampered`, any case)."""
        try:
            return cls[name.strip().upper().replace(" ", "_")]
        except KeyError:
            raise ValueError(f"unknown label {name!r}: expected one of {[label.title for label in cls]}") from None


@dataclass
class Batch:
    """Samples collated for one forward pass."""

    input_ids: Tensor  # int64 [B, T]; IMAGE_TOKEN_ID at each image patch, PAD_TOKEN_ID at the right end
    attention_mask: Tensor  # bool [B, T], False at PAD_TOKEN_ID, an <unk> in a text included
    labels: Tensor  # int64 [B, T]; IGNORE_INDEX where the language loss is silent
    images_clip: Tensor  # float [B, 3, 224, 224], CLIP-normalised; or the tower's features [B, P, D]
    images_sam: Tensor  # float [B, 3, S, S], SAM-normalised, zero-padded right and bottom; or SAM's embeddings [B, E, S/16, S/16]
    cls_labels: Tensor  # int64 [B], values of Label
    masks: list[Tensor]  # B x float [n, h, w] in 0..1 at the resized size; n = 0 where nothing is tampered
    resized_hw: list[Size]  # size inside the padded SAM input
    original_hw: list[Size]  # size of the file
    ids: list[str]  # the records' names, for reports

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Batch:
        """A copy on `device`, images in `dtype`; masks stay float32, token ids int64."""

        def move(name: str, value: object) -> object:
            if isinstance(value, list):
                return [move(name, item) for item in value]
            if not isinstance(value, Tensor):
                return value
            return value.to(device, dtype if name.startswith("images") else None, non_blocking=True)

        return Batch(**{f.name: move(f.name, getattr(self, f.name)) for f in fields(self)})

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory (called by DataLoader on GPU machines)."""
        pinned = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in pinned.items():
            if isinstance(value, Tensor):
                pinned[name] = value.pin_memory()
        return Batch(**pinned)

    def model_inputs(self) -> dict[str, object]:
        """Keyword arguments of `SIDAForCausalLM.forward`.

        An attention mask only where it hides more than a right end, which causal attention sees from there only: kernels are faster without one.
        """
        inputs = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("original_hw", "ids")}
        if not (self.attention_mask[:, 1:] & ~self.attention_mask[:, :-1]).any():
            del inputs["attention_mask"]
        return inputs


@dataclass
class SidaLosses:
    """Scalars; `total` is the weighted sum that is differentiated, the others are unweighted."""

    total: Tensor
    ce: Tensor
    cls: Tensor
    mask_bce: Tensor
    mask_dice: Tensor

    def detached(self) -> dict[str, float]:
        """Name -> Python float."""
        return {f.name: getattr(self, f.name).item() for f in fields(self)}


@dataclass
class SidaOutput(ModelOutput):
    """What one forward pass returns; a field is None when it was not asked for."""

    logits: Tensor | None = None  # [B, T or kept, V]
    past_key_values: Cache | None = None
    hidden: Tensor | None = None  # [B, T, H], after the final norm
    cls_logits: Tensor | None = None  # [B, 3]
    mask_logits: list[Tensor] | None = None  # B x [n, h, w]; a pixel is tampered where > 0
    losses: SidaLosses | None = None
