from __future__ import annotations

import os
import signal
import time

import pytest
import torch
from torch.utils.data import DataLoader

from utils.train.signals import closing_workers, ignore_signals, stop_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_noted_and_handlers_restored(number: signal.Signals, caplog: pytest.LogCaptureFixture) -> None:
    before = signal.getsignal(number)
    with stop_signals() as received:
        assert received == []
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert received == [number, number]
    assert signal.getsignal(number) is before
    assert caplog.text.count(f"{number.name}: stopping after this optimizer step") == 1


def test_workers_outlive_a_signal_and_end_with_the_run() -> None:
    batches = iter(DataLoader(list(range(100)), num_workers=1, worker_init_fn=ignore_signals, generator=torch.Generator()))
    with closing_workers(batches):
        next(batches)
        (worker,) = batches._workers
        os.kill(worker.pid, signal.SIGTERM)
        time.sleep(0.2)
        assert len(list(batches)) == 99
    worker.join(5)
    assert not worker.is_alive()


def test_nothing_to_close_without_workers() -> None:
    with closing_workers(iter(DataLoader([1]))):
        pass
