"""Validation, inside a training run and alone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.sida import SIDAForCausalLM
from utils.data.dataset import SidaDataset
from utils.distributed import barrier, is_main
from utils.eval.evaluate import evaluate
from utils.eval.reporting import report_on
from utils.infer.pipeline import SidaPipeline
from utils.train.build import finished_model, make_processor, read_records
from utils.train.config import TrainConfig
from utils.train.engine import DTYPES, join, pick_device
from utils.train.features import open_cache
from utils.train.signals import ignore_signals


def validate(cfg: TrainConfig, model: SIDAForCausalLM, dataset: SidaDataset, pictures: Path) -> dict[str, Any]:
    """`evaluate` with the flags' settings; figures are the same on every rank, pictures go to the folder `pictures`."""
    settings = {"batch_size": cfg.val_batch_size, "device": pick_device(cfg), "dtype": DTYPES[cfg.precision], "workers": cfg.workers}
    settings["worker_init_fn"] = ignore_signals  # the trainer decides when to stop, not a loader's worker
    return evaluate(model, dataset, **settings, pictures_dir=pictures)


def prepare_evaluation(cfg: TrainConfig) -> Callable[[], str]:
    """Load `--version`, or the training checkpoint `--resume`; the returned function validates it, writes eval.json and reports.

    All ranks of a launcher share the work; a single process needs neither a process group nor DeepSpeed.
    """
    device = pick_device(cfg)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        join(device)
    records = read_records(cfg, "validation")
    model, tokenizer = finished_model(cfg, DTYPES[cfg.precision], device)
    processor = make_processor(cfg, model, tokenizer)
    features = open_cache(cfg, model, processor, records, device)
    pipe = SidaPipeline(model.to(device).eval(), tokenizer, str(device), DTYPES[cfg.precision])

    def run() -> str:
        folder = cfg.run_dir / "eval"
        if is_main():
            shutil.rmtree(folder, ignore_errors=True)  # lines of another checkpoint
            folder.mkdir(parents=True)
        barrier()
        title = f"{cfg.resume or cfg.version} on {cfg.validation_dir}"
        figures = report_on(folder, pipe, records, title, batch_size=cfg.val_batch_size, workers=cfg.workers, features=features)
        if not is_main():
            return ""
        written = cfg.run_dir / "eval.json"
        written.write_text(json.dumps(figures[""], indent=2) + "\n")
        return f"{(folder / 'report.md').read_text()}\nwritten to {folder} and {written}"

    return run
