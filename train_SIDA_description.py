"""Train the description stage: train_SIDA.py with --stage description."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import train_SIDA


def main(argv: Sequence[str] | None = None) -> int:
    """As `train_SIDA.main`."""
    return train_SIDA.main(["--stage", "description", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
