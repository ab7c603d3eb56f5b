"""A random LISA-style base in a second, and a handful of pictures in SID_Set's layout."""

from __future__ import annotations

import json
from pathlib import Path

SENTENCES = [
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the human's questions.",
    "USER: Can you identify if this image is real, full synthetic, or tampered image? Please mask the tampered regions if it is tampered and answer why. ASSISTANT:",
    "The image is real The image is full synthetic The image is tampered",
    "Type: {part tampered} Areas:<tampered position> The tampered area is in the middle. Visual Inconsistencies:<edges> The edges are sharp.",
]


def build_tiny_lisa(folder: Path, **overrides: object) -> Path:
    """LISA-style folder with `sam.pth` and `vision_tower/` inside; `overrides` are SidaConfig fields."""
    from utils.train.scratch import build_base

    return build_base(folder, SENTENCES * 4, name="debug", vocab_size=420, **overrides)


SIZES = ((60, 80), (72, 56), (64, 64))  # (height, width)


def build_tiny_set(
    root: Path, per_class: int = 3, splits: tuple[str, ...] = ("train", "validation"), sizes: tuple[tuple[int, int], ...] = SIZES
) -> Path:
    """SID_Set's Drive layout with small made-up pictures: gradients, stripes, and gradients with a bright square (the mask)."""
    import cv2
    import numpy as np

    from model.types import Label

    rng = np.random.default_rng(0)
    texts: dict[str, dict[str, str]] = {}
    for split in splits:
        for label in Label:
            folder = root / split / label.title
            folder.mkdir(parents=True)
            for i in range(per_class):
                h, w = sizes[i % len(sizes)]
                ramp = np.linspace(0, 200, w)[None, :, None] + rng.integers(0, 40, (h, w, 3))
                pixels = (ramp if label is not Label.FULL_SYNTHETIC else np.indices((h, w)).sum(0)[..., None] % 8 * 30 + np.zeros(3)).astype(np.uint8)
                name = f"{label.title}_{i}.png"
                if label is Label.TAMPERED:
                    mask = np.zeros((h, w), np.uint8)
                    mask[h // 4 : h // 2, w // 4 : w // 2] = 255
                    pixels[mask > 0] = 255
                    (root / split / "masks").mkdir(exist_ok=True)
                    cv2.imwrite(str(root / split / "masks" / f"{label.title}_{i}_mask.png"), mask)
                cv2.imwrite(str(folder / name), pixels)
                if i:  # the first picture of a class has no description
                    texts.setdefault(f"{split}/description/{label.title}_GT.json", {})[name] = "Type: {part tampered} <edges> The edges are sharp."
    for path, content in texts.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(json.dumps(content))
    return root
