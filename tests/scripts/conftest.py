"""A base and a set for the scripts that train."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import build_tiny_lisa, build_tiny_set


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`lisa`, `set` and `runs` in one folder."""
    root = tmp_path_factory.mktemp("path")
    build_tiny_lisa(root / "lisa")
    build_tiny_set(root / "set", per_class=4)
    return root
