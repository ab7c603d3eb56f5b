"""Ending a run in good order when a scheduler, a launcher or Ctrl-C asks for it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """While inside, SIGTERM and SIGINT are noted in the list instead of ending the process."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if not received:
            log.warning("%s: stopping after this optimizer step", signal.Signals(number).name)
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals(worker: int) -> None:
    """For a data loading worker: launchers signal every process, but loading must outlive the trainer's last step."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def closing_workers(batches: Iterator[Any]) -> Iterator[None]:
    """End a loader's workers on leaving: Python would end them by SIGTERM, which they ignore, and wait for ever."""
    try:
        yield
    finally:
        if hasattr(batches, "_shutdown_workers"):  # absent without workers
            batches._shutdown_workers()
