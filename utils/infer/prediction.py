"""What the model says about one picture.

Dimensions: H x W the picture.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from model.types import Label
from utils.infer.intake import Opened
from utils.infer.visualize import overlay, write_picture

SPECK = 0.001  # of the picture: a smaller island of the mask gets no box
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; the last two are outside


@dataclass
class Prediction:
    """The answer about one picture."""

    opened: Opened
    label: Label | None  # None only with decode="reference" when neither prompt nor answer holds a [CLS]
    probs: dict[str, float]  # class title -> probability, calibrated by the checkpoint's temperature; empty when label is None
    text: str
    mask: np.ndarray | None  # bool [H, W] when judged tampered and a mask was decoded
    seconds: float  # a batch's time is shared out evenly
    ended: bool = True  # False for a text that was cut: too long, or repeating itself

    @property
    def image(self) -> np.ndarray:
        """uint8 RGB [H, W, 3], upright."""
        return self.opened.rgb

    @property
    def area(self) -> float | None:
        """Share of the picture that the mask marks, 0..1."""
        return None if self.mask is None else float(self.mask.mean())

    @cached_property
    def boxes(self) -> list[Box]:
        """Around each island of the mask, the largest first; specks have none."""
        if self.mask is None:
            return []
        _, _, stats, _ = cv2.connectedComponentsWithStats(self.mask.astype(np.uint8), connectivity=8)
        islands = sorted((row.tolist() for row in stats[1:] if row[4] >= SPECK * self.mask.size), key=lambda row: -row[4])
        return [(x, y, x + w, y + h) for x, y, w, h, _ in islands]

    def overlay(self, alpha: float = 0.5) -> np.ndarray:
        """The picture with the mask in red, uint8 [H, W, 3]; the picture itself when there is no mask."""
        return self.image if self.mask is None else overlay(self.image, self.mask, alpha=alpha)

    def save(self, folder: str | Path, name: str = "image") -> dict[str, str | None]:
        """Write `NAME_mask_0.png` (0/255) and `NAME_masked_img_0.jpg`; returns their paths, None when there is no mask."""
        if self.mask is None:
            return {"mask": None, "overlay": None}
        mask = write_picture(Path(folder) / f"{name}_mask_0.png", self.mask)
        return {"mask": str(mask), "overlay": str(write_picture(Path(folder) / f"{name}_masked_img_0.jpg", self.overlay()))}

    def to_dict(self) -> dict[str, Any]:
        """Label, probabilities, text, the share of tampered pixels (0..1) and their boxes, ready for JSON."""
        title = self.label.title if self.label is not None else None
        return {"label": title, "probs": self.probs, "text": self.text, "area": self.area, "boxes": [list(box) for box in self.boxes]}

    def to_json(self) -> str:
        """`to_dict` on one line."""
        return json.dumps(self.to_dict())

    def __repr__(self) -> str:
        sure = f"{self.label.title} {self.probs[self.label.title]:.3f}" if self.label is not None else "no class"
        where = "" if self.mask is None else f", {100 * self.area:.1f} % marked in {len(self.boxes)} places"
        return f"Prediction({sure}{where}, {self.text!r})"
