"""What a run leaves to read: log.jsonl, validation.jsonl, args.json, TensorBoard, a progress bar. Only rank 0 has a RunLog."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
from tqdm import tqdm

from utils.distributed import world_size
from utils.train.config import TrainConfig

LOG, VALIDATIONS, ARGS = "log.jsonl", "validation.jsonl", "args.json"
LIBRARIES = ("torch", "transformers", "deepspeed", "peft")
SCALARS = {  # column of log.jsonl -> the original's TensorBoard tag
    "loss": "train/loss",
    "ce": "train/ce_loss",
    "cls": "train/cls_loss",
    "mask_bce": "train/mask_bce_loss",
    "mask_dice": "train/mask_dice_loss",
    "mask": "train/mask_loss",
    "lr": "train/lr",
    "seconds": "metrics/total_secs_per_batch",
    "data_seconds": "metrics/data_secs_per_batch",
}
LEGACY_TAGS = {"f1": "f1_score", "auc": "auc_approx"}
PICTURES = 8  # shown in TensorBoard per validation


class RunLog:
    """Rank 0's records of one run in `cfg.run_dir`. Lines after `step` (of an earlier attempt) are dropped, so the logs are continuous."""

    def __init__(self, cfg: TrainConfig, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = cfg.run_dir
        folder.mkdir(parents=True, exist_ok=True)
        about = {"world_size": world_size(), "versions": {name: version(name) for name in LIBRARIES}}
        (folder / ARGS).write_text(json.dumps(asdict(cfg) | about, indent=2) + "\n")
        for name in (LOG, VALIDATIONS):
            drop_after(folder / name, step)
        self._print_freq = cfg.print_freq
        self._lines = (folder / LOG).open("a", buffering=1)
        self._validations = (folder / VALIDATIONS).open("a", buffering=1)
        self._board = SummaryWriter(str(folder), purge_step=step + 1)
        pause = 0.1 if sys.stderr.isatty() else 30  # seconds between lines: a file needs no animation
        self._bar = tqdm(total=cfg.total_steps, initial=step, unit="step", dynamic_ncols=True, mininterval=pause)

    def step(self, row: dict[str, Any]) -> None:
        """Record one optimizer step; `row` has `step`, `images_per_second` and the columns of SCALARS, None where there was nothing."""
        self._lines.write(json.dumps(row) + "\n")
        self._bar.update()
        if row["step"] % self._print_freq:
            return
        self._bar.set_postfix(epoch=row["epoch"], loss=f"{row['loss']:.4f}", images_s=f"{row['images_per_second']:.2f}", refresh=False)
        for column, tag in SCALARS.items():
            if row[column] is not None:
                self._board.add_scalar(tag, row[column], row["step"])

    def validation(self, step: int, epoch: int, figures: dict[str, Any], table: str, pictures: Path) -> None:
        """Record one validation: its figures, its table as text, and the .jpg files in `pictures`."""
        self._validations.write(json.dumps({"step": step, "epoch": epoch, **figures}) + "\n")
        tqdm.write(f"\nvalidation after epoch {epoch}, step {step}\n{table}\n")
        for tag, value in validation_scalars(figures).items():
            self._board.add_scalar(tag, value, step)
        self._board.add_text("val/table", f"```\n{table}\n```", step)
        for path in sorted(pictures.glob("*.jpg"))[:PICTURES]:
            self._board.add_image(f"val/{path.stem}", cv2.imread(str(path))[..., ::-1].copy(), step, dataformats="HWC")

    def close(self) -> None:
        """Flush everything."""
        self._bar.close()
        self._board.close()
        self._lines.close()
        self._validations.close()


def validation_scalars(figures: dict[str, Any]) -> dict[str, float]:
    """TensorBoard tag -> number: `legacy_*` and per-class figures under the original's val/ tags, the others under eval/."""
    scalars = {}
    for name, value in figures.items():
        legacy = name.removeprefix("legacy_").lower()
        if isinstance(value, int | float):
            scalars[f"val/{LEGACY_TAGS.get(legacy, legacy)}" if name.startswith("legacy_") else f"eval/{name}"] = value
    for title, row in figures.get("per_class", {}).items():
        scalars |= {f"val/{title}_{name}": value for name, value in row.items()}
    return scalars


def drop_after(path: Path, step: int) -> None:
    """Keep the lines of a .jsonl file up to `step`; a last line cut short by a kill goes too. No file, nothing to do."""
    if not path.is_file():
        return
    complete = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    kept = [line for line in complete if json.loads(line)["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)
