"""Settings for every test: one thread (two make small operations slower), no hub, no accelerator probing. A base and a set to train."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `lisa` (sam.pth and vision_tower inside) and `set`."""
    from tests.tiny import build_tiny_lisa, build_tiny_set

    root = tmp_path_factory.mktemp("place")
    build_tiny_lisa(root / "lisa")
    build_tiny_set(root / "set", per_class=4)
    return root
