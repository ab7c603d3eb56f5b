"""A random LISA-style base in a second, and a handful of pictures in SID_Set's layout."""

from __future__ import annotations

from pathlib import Path

SENTENCES = [
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the human's questions.",
    "USER: Can you identify if this image is real, full synthetic, or tampered image? Please mask the tampered regions if it is tampered and answer why. ASSISTANT:",
    "The image is real The image is full synthetic The image is tampered",
    "Type: {part tampered} Areas:<tampered position> The tampered area is in the middle. Visual Inconsistencies:<edges> The edges are sharp.",
]


def build_tiny_lisa(folder: Path, **overrides: object) -> Path:
    """LISA-style folder with `sam.pth` and `vision_tower/` inside; `overrides` are SidaConfig fields."""
    from model.scratch import build_base

    return build_base(folder, SENTENCES * 4, vocab_size=420, **overrides)
