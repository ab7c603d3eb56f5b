"""chat.py with the description stage's defaults: longer answers, repeated tags removed."""

from __future__ import annotations

import sys

import chat

if __name__ == "__main__":
    sys.exit(chat.main(stage="description"))
