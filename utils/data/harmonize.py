"""A copy of a data set whose files tell nothing of the class: JPEG, one size, qualities of one distribution, no metadata, names from hashes.

What earlier compressions and resizes left in the pixels stays there.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from model.types import Label
from utils.data.dataset import decode
from utils.data.records import Record

SHOWN = 10
QUALITIES = (75, 96)  # drawn from, the end left out


def harmonize(listed: Sequence[tuple[str, Record]], out: Path, seed: int = 0) -> str:
    """Write (split, record) pairs in the Drive layout to the new folder `out`; returns a sentence about it.

    Each picture's middle square, at the side that three quarters of the pictures reach, is encoded with a quality drawn by its name. Pictures that cannot
    be used, and tampered ones whose mask lies outside the square, are left out. ValueError when `out` is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: give a new folder")
    decoded_sides, lost = {}, []
    for split, record in listed:
        try:
            decoded_sides[split, record.id] = min(decode(record)[0].shape[:2])
        except (OSError, ValueError) as error:
            lost.append(f"{record.id}: {error}")
    if not decoded_sides:
        raise ValueError("no picture can be used")
    side = int(np.quantile(list(decoded_sides.values()), 0.25))
    descriptions: dict[tuple[str, Label], dict[str, str]] = {}
    for split, record in listed:
        if (split, record.id) not in decoded_sides:
            continue
        rgb, gray = ((None if picture is None else _square(picture, side)) for picture in decode(record))
        if gray is not None and not (gray > 127).any():
            lost.append(f"{record.id}: its mask is outside the middle square")
            continue
        name = f"{zlib.crc32(f'{seed} {split} {record.id}'.encode()):08x}"
        _write(out / split, name, rgb, gray, record.label)
        if record.description:
            descriptions.setdefault((split, record.label), {})[f"{name}.jpg"] = record.description
    for (split, label), texts in descriptions.items():
        path = out / split / "description" / f"{label.title}_GT.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(texts, indent=1) + "\n")
    left_out = "".join(f"\n      {line}" for line in lost[:SHOWN])
    return f"{len(listed) - len(lost)} pictures of {side} x {side} written to {out}, {len(lost)} left out{left_out}"


def _square(picture: np.ndarray, side: int) -> np.ndarray:
    """The middle square of [H, W] or [H, W, 3] at `side` pixels."""
    short = min(picture.shape[:2])
    top, left = ((length - short) // 2 for length in picture.shape[:2])
    square = picture[top : top + short, left : left + short]
    return cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA if picture.ndim == 3 else cv2.INTER_NEAREST)


def _write(folder: Path, name: str, rgb: np.ndarray, gray: np.ndarray | None, label: Label) -> None:
    (folder / label.title).mkdir(parents=True, exist_ok=True)
    quality = int(np.random.default_rng(int(name, 16)).integers(*QUALITIES))
    cv2.imwrite(str(folder / label.title / f"{name}.jpg"), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if gray is not None:
        (folder / "masks").mkdir(exist_ok=True)
        cv2.imwrite(str(folder / "masks" / f"{name}_mask.png"), gray)
