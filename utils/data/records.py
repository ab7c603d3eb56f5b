"""What the data layer hands around before a batch exists.

Dimensions: T tokens (image patches included), S side of SAM's square input, h x w the resized image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor

from model.types import Label, Size


class Stored(Protocol):
    """A picture's file, wherever it is kept, e.g. in a row of a table; `str` says where. A Path is one."""

    def read_bytes(self) -> bytes:
        """The whole file."""


@dataclass(frozen=True)
class Record:
    """One picture of a data set; nothing is decoded. `id` is unique within its split, in folders "<class folder>/<file name>"."""

    id: str
    image: Path | Stored
    label: Label
    mask: Path | Stored | None = None  # grey picture of the image's size, white where tampered; needed when label is TAMPERED
    description: str | None = None
    origin: Mapping[str, str] = field(default_factory=dict, compare=False)  # e.g. generator, source_platform: what figures are broken down by


@dataclass
class Sample:
    """One picture and its conversation as tensors."""

    id: str
    input_ids: Tensor  # int64 [T]
    labels: Tensor  # int64 [T]
    image_clip: Tensor  # float32 [3, 224, 224], CLIP-normalised; or float16 [P, D], the tower's features
    image_sam: Tensor  # float32 [3, S, S], SAM-normalised, zero-padded right and bottom; or float16 [E, S/16, S/16], SAM's embedding
    mask: Tensor  # float32 [1, h, w] in 0..1, soft edges; zeros unless tampered
    label: Label
    resized_hw: Size  # (h, w)
    original_hw: Size  # size of the file, or of the crop that augmentation took
    unreadable: tuple[str, ...] = ()  # paths tried before this one


@dataclass(frozen=True)
class Unreadable:
    """Stands in for a Sample whose image or mask could not be used."""

    path: str
    reason: str
