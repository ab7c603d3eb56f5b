"""A training run from start to end."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from utils.data.dataset import SidaDataset
from utils.data.sampler import BatchStream
from utils.distributed import all_reduce_sum, is_main, rank, world_size
from utils.eval.report import format_report
from utils.train import checkpoints
from utils.train.build import compile_layers, loss_weights, make_loader, make_processor, read_records, seed_everything, train_dataset, trainable_model
from utils.train.checkpoints import TrainState
from utils.train.config import TrainConfig
from utils.train.engine import DTYPES, build_engine, join, pick_device
from utils.train.features import open_cache
from utils.train.logging import ARGS, RunLog
from utils.train.signals import closing_workers, stop_signals

log = logging.getLogger(__name__)

BEST, BEST_IOU, LAST = "ckpt_model", "ckpt_best_iou", "ckpt_last"


class Trainer:
    """One training run of `cfg`; call `fit` once, on every rank.

    Raises ValueError or FileNotFoundError for flags, data or checkpoints that do not fit, before any training.
    """

    def __init__(self, cfg: TrainConfig) -> None:
        self.device, self.dtype = pick_device(cfg), DTYPES[cfg.precision]
        self.weights = loss_weights(cfg)
        self.state = TrainState()
        self._saved_step = -1  # of ckpt_last
        join(self.device)
        records = read_records(cfg, "train")
        labels = [int(record.label) for record in records]
        stream = BatchStream(labels, cfg.batch_size, seed=cfg.seed, rank=rank(), world=world_size(), mixing=cfg.batch_mixing)
        self.cfg = cfg = whole_pass(cfg, stream)
        validation = [] if cfg.no_eval else read_records(cfg, "validation")
        resume = find_resume(cfg)
        model, tokenizer = trainable_model(cfg, self.dtype)
        processor = make_processor(cfg, model, tokenizer)
        features = open_cache(cfg, model, processor, [*records, *validation], self.device)
        self.validation = SidaDataset(validation, processor, replace_unreadable=False, features=features) if validation else None
        if cfg.compile:
            compile_layers(model, self.device)
        self.engine = build_engine(model, cfg, self.device)
        seed_everything(cfg.seed + rank())  # from here on ranks differ, e.g. in dropout
        self._start(resume)
        stream.position = self.state.micro_batches
        self.batches = iter(make_loader(cfg, train_dataset(cfg, records, processor, features), stream, self.device))

    def _start(self, resume: Path | None) -> None:
        cfg = self.cfg
        if resume:
            self.state = checkpoints.load(self.engine, resume)
            if resume == cfg.run_dir / LAST:
                self._saved_step = self.state.global_step
            log.info("continuing %s after step %d of %d", resume, self.state.global_step, cfg.total_steps)
        elif cfg.start_epoch:
            steps = cfg.start_epoch * cfg.steps_per_epoch
            self.state = TrainState(global_step=steps, epoch=cfg.start_epoch, micro_batches=steps * cfg.grad_accumulation_steps)

    def fit(self) -> str:
        """Train to the end, or until SIGTERM or SIGINT, after which the current step is finished and saved.

        Returns what to tell the user. OSError if the last checkpoint cannot be written.
        """
        self.log = RunLog(self.cfg, self.state.global_step) if is_main() else None
        with stop_signals() as received, closing_workers(self.batches):
            stopped = self._loop(received)
        if not stopped:
            self._finish()
        if self.log:
            self.log.close()
        return self._farewell(stopped)

    def _loop(self, received: list[int]) -> bool:
        """Train until the end (False) or a signal (True)."""
        cfg, state = self.cfg, self.state
        self._validate_if_due()
        while state.global_step < cfg.total_steps and not self._stale():
            row = self._step()
            if self.log:
                self.log.step(row)
            stop = self._any_rank(bool(received))
            if stop or state.global_step % (cfg.save_steps or cfg.steps_per_epoch) == 0:
                self._save_last(required=stop)
            if stop:
                return True
            self._validate_if_due()  # after saving: it takes long, and may fail
        return False

    def _step(self) -> dict[str, Any]:
        """One optimizer step; returns its row of the log."""
        started, waited = time.monotonic(), 0.0
        (lr,) = set(self.engine.get_lr())
        sums = torch.zeros(8, dtype=torch.float64, device=self.device)
        for _ in range(self.cfg.grad_accumulation_steps):
            asked = time.monotonic()
            batch, unreadable = next(self.batches)
            waited += time.monotonic() - asked
            batch = batch.to(self.device, self.dtype)
            losses = self.engine(**batch.model_inputs()).losses
            self.engine.backward(losses.total)
            self.engine.step()
            masked = any(len(mask) for mask in batch.masks)
            parts = (losses.total, losses.ce, losses.cls, losses.mask_bce * masked, losses.mask_dice * masked)
            counts = sums.new_tensor([masked, len(batch), len(unreadable)])
            sums += torch.cat([torch.stack([part.detach().double() for part in parts]), counts])
        *losses, images, unreadable = all_reduce_sum(sums).tolist()
        seconds = time.monotonic() - started
        self._advance(seconds, int(unreadable))
        norm = self.engine.get_global_grad_norm()
        row = {"step": self.state.global_step, "epoch": -(-self.state.global_step // self.cfg.steps_per_epoch), **self._means(*losses)}
        row |= {"lr": lr, "grad_norm": None if norm is None else float(norm), "images_per_second": images / seconds}
        return row | {"seconds": seconds, "data_seconds": waited, "unreadable": self.state.unreadable}

    def _advance(self, seconds: float, unreadable: int) -> None:
        state = self.state
        state.global_step += 1
        state.epoch = state.global_step // self.cfg.steps_per_epoch
        state.micro_batches += self.cfg.grad_accumulation_steps
        state.unreadable += unreadable
        state.seconds += seconds

    def _means(self, total: float, ce: float, cls: float, bce: float, dice: float, masked: float) -> dict[str, float | None]:
        """Sums over micro batches and ranks -> means; the mask losses' over the micro batches with a mask, None if there was none."""
        count = self.cfg.grad_accumulation_steps * world_size()
        means: dict[str, float | None] = {"loss": total / count, "ce": ce / count, "cls": cls / count}
        if not masked:
            return means | {"mask_bce": None, "mask_dice": None, "mask": None}
        bce, dice = bce / masked, dice / masked
        only_mask = replace(self.weights, ce=0.0, cls=0.0, mask=1.0)
        return means | {"mask_bce": bce, "mask_dice": dice, "mask": only_mask.combine(0.0, 0.0, bce, dice).total}

    def _any_rank(self, flag: bool) -> bool:
        return bool(all_reduce_sum(torch.tensor(float(flag), device=self.device)).item())

    def _validate_if_due(self) -> None:
        cfg, state = self.cfg, self.state
        epoch_ended = state.global_step > 0 and state.global_step % cfg.steps_per_epoch == 0
        due = epoch_ended and (state.epoch in cfg.stage_defaults.validate_after or state.epoch == cfg.epochs)
        if not due or self.validation is None or state.validated_step == state.global_step:
            return
        from utils.train.evaluation import validate  # seconds, for torchmetrics and scikit-learn

        pictures = cfg.pictures_dir / f"step{state.global_step}"
        randomness = checkpoints.random_states()
        figures = validate(cfg, self.engine.module, self.validation, pictures)
        checkpoints.restore_random_states(randomness)  # training goes on the same with or without validation
        if self.log:
            self.log.validation(state.global_step, state.epoch, figures, format_report(figures), pictures)
        better = gains(state, figures)
        main = deciding(cfg.stage, figures)
        state.stale_validations = 0 if better[main] else state.stale_validations + 1
        state.validated_step = state.global_step
        for column, folder in ((main, BEST), ("best_iou", BEST_IOU)):
            if better[column]:
                checkpoints.save(self.engine, cfg.run_dir / folder, state)
        if self._saved_step == state.global_step:
            checkpoints.update_state(cfg.run_dir / LAST, state)

    def _stale(self) -> bool:
        stale = 0 < self.cfg.early_stop <= self.state.stale_validations
        if stale:
            log.info("stopping early: %d validations without a gain", self.state.stale_validations)
        return stale

    def _save_last(self, required: bool = False) -> None:
        if self._saved_step == self.state.global_step:
            return
        if checkpoints.save(self.engine, self.cfg.run_dir / LAST, self.state, keep=self.cfg.keep_last, required=required):
            self._saved_step = self.state.global_step

    def _finish(self) -> None:
        self._save_last(required=True)
        if self.state.validated_step < 0:  # nothing was ever best: the last state is what there is to merge
            checkpoints.save(self.engine, self.cfg.run_dir / BEST, self.state, required=True)

    def _farewell(self, stopped: bool) -> str:
        cfg, state, run = self.cfg, self.state, self.cfg.run_dir
        if stopped:
            return f"Stopped after step {state.global_step} of {cfg.total_steps}; {run / LAST} holds it. The same command continues."
        best = f"; best accuracy {state.best_accuracy:.4f}, best IoU {state.best_iou:.4f}" if state.validated_step >= 0 else ""
        merge = f"python merge_lora_weights_and_save_hf_model.py --version {cfg.version} --weight {run / BEST} --save_path ck/{cfg.exp_name}"
        return f"Trained {state.global_step} steps in {state.seconds:.0f} s{best}.\nNext: {merge}"


def whole_pass(cfg: TrainConfig, stream: BatchStream) -> TrainConfig:
    """`cfg` with --steps_per_epoch 0 replaced by the optimizer steps of one pass over the data."""
    batches = world_size() * cfg.grad_accumulation_steps
    return cfg if cfg.steps_per_epoch else replace(cfg, steps_per_epoch=-(-stream.batches_per_pass // batches))


def find_resume(cfg: TrainConfig) -> Path | None:
    """The checkpoint folder to continue from; one that cannot be continued is an error now, not after minutes of loading."""
    own = cfg.run_dir / LAST
    if not cfg.resume and not checkpoints.exists(own):
        return None
    if not cfg.resume and not cfg.auto_resume:
        raise ValueError(f"{own} holds a checkpoint but --auto_resume is off: choose another --exp_name, or delete {cfg.run_dir}")
    folder = Path(cfg.resume) if cfg.resume else own
    checkpoints.find_tag(folder)
    if not cfg.resume:
        _began_alike(cfg)
    return folder


def _began_alike(cfg: TrainConfig) -> None:
    """ValueError when the run of this name began elsewhere: what it trained belongs to that base's frozen weights."""
    path = cfg.run_dir / ARGS
    if not path.is_file():
        return
    began = json.loads(path.read_text())
    for name, same in (("version", Path(began["version"]).resolve() == Path(cfg.version).resolve()), ("stage", began["stage"] == cfg.stage)):
        if not same:
            raise ValueError(
                f"{cfg.run_dir} was trained with --{name} {began[name]}, not {getattr(cfg, name)}: choose another --exp_name, "
                f"or continue it all the same with --resume {cfg.run_dir / LAST}"
            )


def deciding(stage: str, figures: dict[str, Any]) -> str:
    """Which best figure ckpt_model and early stopping go by: explanations by their language loss, unless nothing was described (loss 0)."""
    return "best_ce" if stage == "description" and figures["ce"] else "best_accuracy"


def gains(state: TrainState, figures: dict[str, Any]) -> dict[str, bool]:
    """Which of the state's best figures `figures` beat; they are updated."""
    found = {"best_accuracy": figures["accuracy"], "best_iou": figures["legacy_gIoU"], "best_ce": figures["ce"]}
    better = {name: value < state.best_ce if name == "best_ce" else value > getattr(state, name) for name, value in found.items()}
    for name in better:
        if better[name]:
            setattr(state, name, found[name])
    return better
