"""Small data sets on disk, and the tiny tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from model.config import SidaConfig, preset
from model.tokens import SidaTokenizer

PARITY = Path(__file__).parents[2] / "parity" / "data"


def write_picture(path: Path, height: int = 40, width: int = 60) -> Path:
    """A picture of noise that depends on the file's name only; grey when the name ends in _mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width) if path.stem.endswith("_mask") else (height, width, 3)
    pixels = np.random.default_rng(list(path.name.encode())).integers(0, 256, shape, dtype=np.uint8)
    path.write_bytes(cv2.imencode(path.suffix.lower(), pixels)[1].tobytes())
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A `train` split: 2 real, 1 full synthetic and 3 tampered pictures with masks and descriptions."""
    split = tmp_path / "set" / "train"
    for name in ("real/b.jpg", "real/a.PNG", "full_synthetic/s.webp", "tampered/t0.png", "tampered/t1.jpeg", "tampered/t2.bmp"):
        write_picture(split / name)
    for i in range(3):
        write_picture(split / "masks" / f"t{i}_mask.png")
    (split / "description").mkdir()
    for title, texts in (("real", {"b.jpg": "Natural light."}), ("full_synthetic", {}), ("tampered", {"t0.png": "A sharp edge."})):
        (split / "description" / f"{title}_GT.json").write_text(json.dumps(texts))
    return split.parent


@pytest.fixture(scope="session")
def tokenizer() -> SidaTokenizer:
    return SidaTokenizer.from_pretrained(PARITY)


@pytest.fixture
def make_config() -> Callable[..., SidaConfig]:
    def make(**overrides: object) -> SidaConfig:
        return preset("debug", vocab_size=645, **overrides)

    return make
