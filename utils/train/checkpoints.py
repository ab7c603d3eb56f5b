"""DeepSpeed checkpoints that survive being killed at any moment, and that continue exactly.

A checkpoint folder holds `global_step<N>/` (weights, optimizer, scheduler and loss scale by DeepSpeed; `state.json`; random states,
one file per rank), `latest`, which names the newest complete one, and DeepSpeed's `zero_to_fp32.py`. While being written, a name ends
in `.tmp`.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from utils.distributed import barrier, gather_objects, is_main, rank, world_size

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

log = logging.getLogger(__name__)

LATEST, STATE = "latest", "state.json"
PARTIAL = ".tmp"
SHAPE = "a checkpoint folder holds `latest` and the `global_step<N>` folder that it names, e.g. runs/NAME/ckpt_last"
WRITER_ERRORS = ("PytorchStreamWriter", "inline_container")  # torch's writer raises RuntimeError where Python raises OSError


@dataclass
class TrainState:
    """Where a run stands; everything that is neither in the engine nor a random state."""

    global_step: int = 0  # optimizer steps done
    epoch: int = 0  # epochs done
    micro_batches: int = 0  # consumed by each rank
    best_accuracy: float = -1.0  # 0..1, -1 before any validation
    best_iou: float = -1.0  # legacy gIoU, 0..1
    best_ce: float = float("inf")
    stale_validations: int = 0  # since the last gain
    validated_step: int = -1  # step of the last validation
    unreadable: int = 0  # files that could not be read so far, all ranks
    seconds: float = 0.0  # wall time spent training


def save(engine: DeepSpeedEngine, folder: Path, state: TrainState, *, keep: int = 1, required: bool = False) -> bool:
    """Write `state` and the engine as a new checkpoint in `folder`, then forget all but the `keep` newest. All ranks call it.

    Returns False, having logged why, when it could not be written (disk full); the previous checkpoint then still stands.
    With `required` that is an OSError.
    """
    tag = f"global_step{state.global_step}"
    partial = folder / (tag + PARTIAL)
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        _remove_partial(folder)
    barrier()
    with _collecting_write_errors(engine) as errors:
        engine.save_checkpoint(str(folder), tag=partial.name, save_latest=False)
        _attempt(errors, partial / _rng_name(), torch.save, random_states())
        if is_main():
            _attempt(errors, partial / STATE, _replace_text, _state_text(state))
    failures = [error for errors in gather_objects(errors) for error in errors]
    free = shutil.disk_usage(folder).free / 1e9
    if is_main():
        if failures:
            shutil.rmtree(partial)
        else:
            _publish(partial, folder / tag)
            _prune(folder, state.global_step, keep)
    barrier()
    if failures:
        message = f"could not write checkpoint {folder / tag}: {failures[0]} ({free:.3f} GB free). Make room; what was in {folder} still stands."
        if required:
            raise OSError(message)
        if is_main():
            log.error("%s Training goes on.", message)
    return not failures


@contextmanager
def _collecting_write_errors(engine: DeepSpeedEngine) -> Iterator[list[str]]:
    """Let DeepSpeed go on after a failed write, so that all ranks still meet in its barriers; the errors are in the list."""
    errors: list[str] = []
    storage = engine.checkpoint_engine
    write = storage.save

    def save(state_dict: Any, path: str) -> None:  # DeepSpeed passes both by name
        _attempt(errors, Path(path), write, state_dict)

    storage.save = save
    try:
        yield errors
    finally:
        storage.save = write


def _attempt(errors: list[str], path: Path, write: Callable[[Any, str], Any], content: Any) -> None:
    try:
        write(content, str(path))
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in WRITER_ERRORS):
            raise
        errors.append(f"{path.name} of rank {rank()}: {error}")
        path.unlink(missing_ok=True)  # makes room for the small files that follow


def _publish(partial: Path, final: Path) -> None:
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    _replace_text(final.name, str(final.parent / LATEST))


def _replace_text(text: str, path: str) -> None:
    Path(path + PARTIAL).write_text(text)
    os.replace(path + PARTIAL, path)


def _state_text(state: TrainState) -> str:
    return json.dumps(asdict(state) | {"world_size": world_size()}, indent=2) + "\n"


def _prune(folder: Path, newest: int, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints, and those after `newest`, which belong to a future that was rolled back."""
    steps = {path: int(path.name.removeprefix("global_step")) for path in folder.glob("global_step*")}
    kept = sorted((step for step in steps.values() if step <= newest), reverse=True)[:keep]
    for path, step in steps.items():
        if step not in kept:
            shutil.rmtree(path)


def _remove_partial(folder: Path) -> None:
    for path in folder.glob(f"global_step*{PARTIAL}"):
        log.warning("removing %s: its writing was interrupted", path)
        shutil.rmtree(path)


def exists(folder: Path) -> bool:
    """Whether `folder` holds anything to continue from; a first checkpoint whose writing was interrupted does not count."""
    return folder.is_dir() and any(path.suffix not in (PARTIAL, ".py") for path in folder.iterdir())


def load(engine: DeepSpeedEngine, folder: Path) -> TrainState:
    """Restore the engine and this rank's random states from `folder`; returns the state. All ranks call it.

    Raises FileNotFoundError or ValueError when it is not a complete checkpoint, or was written by another number of processes.
    """
    tag = find_tag(folder)
    engine.load_checkpoint(str(folder), tag=tag.name)
    restore_random_states(torch.load(tag / _rng_name(), weights_only=True))
    saved = json.loads((tag / STATE).read_text())
    return TrainState(**{name: saved[name] for name in asdict(TrainState())})


def update_state(folder: Path, state: TrainState) -> None:
    """Replace the state in the newest checkpoint of `folder`, for what happened since without a further step. All ranks call it."""
    if is_main():
        _replace_text(_state_text(state), str(find_tag(folder) / STATE))
    barrier()


def find_tag(folder: Path) -> Path:
    """The newest complete `global_step<N>` of a checkpoint folder; errors as `load`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no checkpoint folder {folder}: {SHAPE}")
    if not (folder / LATEST).is_file():
        found = sorted(path.name for path in folder.iterdir())[:10]
        raise FileNotFoundError(f"{folder} has no `latest`: {SHAPE}; found {found}. To start over, delete it or choose another --exp_name.")
    tag = folder / (folder / LATEST).read_text().strip()
    if not tag.is_dir():
        raise FileNotFoundError(f"{folder / LATEST} names {tag.name}, which is not there: {SHAPE}")
    if not (tag / STATE).is_file():
        raise ValueError(f"{tag} has no {STATE}: it was not written by this trainer; merge it, and train from the merged folder")
    saved = json.loads((tag / STATE).read_text())["world_size"]
    if saved != world_size():
        raise ValueError(f"{tag} was written by {saved} processes, now there are {world_size()}: resume with {saved}")
    return tag


def _rng_name() -> str:
    return f"rng_rank{rank()}.pt"


def random_states() -> dict[str, Any]:
    """The states of this process's random generators, of plain types and tensors only."""
    kind, keys, *rest = np.random.get_state()
    states = {"python": random.getstate(), "numpy": (kind, keys.tolist(), *rest), "torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Inverse of `random_states`."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
