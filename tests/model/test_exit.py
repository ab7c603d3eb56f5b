"""Leaving a script."""

from __future__ import annotations

import subprocess
import sys

from tests.scripts.launch import ROOT


def test_the_collector_leaves_alone_what_was_imported() -> None:
    """Hooks run in reverse order: the first one sees what the others did."""
    look = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 1000)); import model"
    assert subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True).stdout == "True\n"
