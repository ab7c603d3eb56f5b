"""The best and the worst masks of an evaluation, side by side with the truth: figures cannot show what a model mistakes for tampering."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from utils.data.dataset import decode
from utils.data.records import Record
from utils.eval.judging import Line
from utils.infer.pipeline import SidaPipeline
from utils.infer.visualize import overlay, write_picture

SHOWN = 4  # of each
SIDE = 240  # pixels
GREEN = (0, 160, 0)
NAME = "gallery.jpg"


def draw_gallery(folder: Path, pipe: SidaPipeline, records: Sequence[Record], lines: Sequence[Line]) -> list[str]:
    """Write NAME: rows of photograph | truth (green) | the model's mask (red), the best above, the worst below. Its name, or nothing without masks."""
    scored = sorted((line for line in lines if line.iou is not None and line.corruption == ""), key=lambda line: (-line.iou, line.id))
    chosen = [*scored[:SHOWN], *scored[SHOWN:][-SHOWN:]]
    by_id = {record.id: record for record in records}
    if not chosen:
        return []
    rows = [_row(pipe, by_id[line.id], f"IoU {line.iou:.2f}  {line.id.split('/')[-1]}") for line in chosen]
    half = -(-len(rows) // 2)
    rows += [np.full_like(rows[0], 255)] * (2 * half - len(rows))
    write_picture(folder / NAME, np.hstack([np.vstack(rows[:half]), np.full((half * rows[0].shape[0], 16, 3), 255, np.uint8), np.vstack(rows[half:])]))
    return [NAME]


def _row(pipe: SidaPipeline, record: Record, title: str) -> np.ndarray:
    """uint8 [SIDE + 24, 3 SIDE, 3]."""
    rgb, gray = decode(record)
    found = pipe.detect(rgb)
    parts = [rgb, overlay(rgb, gray > 127, GREEN), found.overlay()]
    words = np.full((24, 3 * SIDE, 3), 255, np.uint8)
    cv2.putText(words, title[:80], (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([words, np.hstack([cv2.resize(part, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for part in parts])])
