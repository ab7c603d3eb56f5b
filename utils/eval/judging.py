"""From pictures to one line each: what the model said, and how far it is from the truth. Everything else is computed from these lines.

One teacher-forced pass gives both protocols: the class is read from the prompt alone, the mask at the [SEG] of a tampered answer. End to end a
picture judged otherwise has an empty mask; the oracle's mask is the decoded one. Batches are cut before they are shared out among
ranks, so a picture's line does not depend on how many there are.

Dimensions: B pictures, T tokens, h x w the resized picture, H x W the file's.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.utils.data import DataLoader

from model.sida import SIDAForCausalLM
from model.types import Batch, Label, Size
from utils.data.collate import collate
from utils.data.conversation import answer, encode, question
from utils.data.dataset import SidaDataset, decode
from utils.data.records import Record
from utils.data.sampler import Draw
from utils.eval.metrics import legacy_overlap
from utils.infer.pipeline import SidaPipeline
from utils.infer.views import average, turned, turned_size, upright

log = logging.getLogger(__name__)

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 20))  # of the mask's probability
PIXELS = 65536  # at most so many enter a picture's AUROC, evenly spaced
DIGITS = 6


@dataclass
class Line:
    """One picture under one corruption; fractions in 0..1. Localization is of tampered pictures only, else None."""

    id: str
    path: str
    sha256: str
    label: int
    corruption: str = ""
    origin: dict[str, str] = field(default_factory=dict)
    error: str | None = None  # why it could not be read; then there is nothing below
    logits: list[float] | None = None  # of the three classes
    probs: list[float] | None = None  # of the three classes, at the checkpoint's temperature, as predict.py gives them
    predicted: int | None = None
    area: float | None = None  # of the end-to-end mask
    iou: float | None = None
    f1: float | None = None
    oracle_iou: float | None = None
    oracle_f1: float | None = None
    oracle_auroc: float | None = None  # of pixels
    overlap: list[int] | None = None  # pixels: intersection, union, of the end-to-end mask
    oracle_overlap: list[int] | None = None
    f1_at: list[float] | None = None  # the oracle's, at THRESHOLDS
    legacy: list[float] | None = None  # intersection, union, as the original counts them
    text: str | None = None  # the explanation, where there is one to compare it with
    ended: bool | None = None  # whether the text ended by itself
    reference: str | None = None  # the data set's description

    @property
    def key(self) -> tuple[str, str]:
        """What names the line."""
        return self.corruption, self.id

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without what there is not."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def begin(record: Record, corruption: str, error: str | None = None) -> Line:
    """The line of a picture before the model has seen it."""
    content = b""
    try:
        content = record.image.read_bytes()
    except OSError as problem:
        error = error or str(problem)
    return Line(record.id, str(record.image), hashlib.sha256(content).hexdigest(), int(record.label), corruption, dict(record.origin), error)


def judge(
    model: SIDAForCausalLM, dataset: SidaDataset, batches: Sequence[list[int]], corruption: str, device: torch.device, dtype: torch.dtype, workers: int
) -> Iterator[list[Line]]:
    """The lines of each of `batches`, indices into `dataset`, one list per batch. A checkpoint that explains does so where there is a description."""
    prompt = torch.tensor(encode(dataset.processor.tokenizer, model.config, question(model.config.stage), answer(Label.TAMPERED, model.config.stage))[0])
    explains = model.config.stage == "description" and not corruption
    pipe = SidaPipeline(model, dataset.processor.tokenizer, str(device), dtype) if explains else None
    if dataset.features is not None and model.config.views > 1:
        log.warning("one look at each picture instead of %d: kept features cannot be turned, leave out --cache_features for all", model.config.views)
    place = {record.id: i for i, record in enumerate(dataset.records)}
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=collate, pin_memory=device.type == "cuda")
    for indices, (batch, _) in zip(batches, loader, strict=True):
        lines = {} if batch is None else {line.id: line for line in _lines(model, dataset, place, batch.to(device, dtype), prompt.to(device), corruption)}
        records = [dataset.records[i] for i in indices]
        if pipe is not None:
            explain(pipe, [record for record in records if record.description and record.id in lines], lines)
        yield [lines[record.id] if record.id in lines else begin(record, corruption, "cannot be read") for record in records]


def explain(pipe: SidaPipeline, records: Sequence[Record], lines: Mapping[str, Line]) -> None:
    """Add text and reference to the lines of these pictures."""
    answers = pipe([record.image.read_bytes() for record in records], decode="explain", batch_size=max(1, len(records)))
    for record, told in zip(records, answers, strict=True):
        line = lines[record.id]
        line.text, line.ended, line.reference = told.text, told.ended, record.description


@torch.inference_mode()
def look(model: SIDAForCausalLM, batch: Batch, ids: Tensor, views: int, wanted: Callable[[Tensor], Sequence[int]]) -> tuple[Tensor, dict[int, Tensor]]:
    """Class logits [B, 3] and mask logits, at the resized size [h, w], under the answer in `ids` [T]: averages over `views` (utils/infer/views.py).

    `wanted` names, given the class logits, the rows whose masks are decoded.
    """
    count, turns = len(batch), range(views)
    clip = torch.cat([turned(batch.images_clip, batch.images_clip.shape[-2:], k) for k in turns])
    rows = ids.expand(len(clip), -1)
    features = model.see(clip)
    hidden = model.model(inputs_embeds=model.embed(rows, features), attention_mask=torch.ones_like(rows, dtype=torch.bool)).last_hidden_state
    each = model.classify(hidden, rows, features)
    cls_logits, masks = average(each, views), {}
    if chosen := list(wanted(cls_logits)):
        looks = [(k, i) for k in turns for i in chosen]
        at = [k * count + i for k, i in looks]
        states, sam = model.seg_states(hidden, rows), model.model.visual_model
        embeddings = sam.encode(torch.stack([turned(batch.images_sam[i], batch.resized_hw[i], k) for k, i in looks]))
        low_res = model.low_res_masks(embeddings, [states[row] for row in at], each[at])
        found = []
        for logits, (k, i) in zip(low_res, looks, strict=True):
            size = turned_size(batch.resized_hw[i], k)
            found.append(upright(sam.upscale(logits, size, size)[0], k))
        masks = {i: torch.stack(found[n :: len(chosen)]).mean(dim=0) for n, i in enumerate(chosen)}
    return cls_logits, masks


def resized_to(mask: Tensor, size: Size) -> Tensor:
    """Mask logits [h, w] -> [*size]."""
    return F.interpolate(mask[None, None], size, mode="bilinear", align_corners=False)[0, 0]


@torch.inference_mode()
def _lines(model: SIDAForCausalLM, dataset: SidaDataset, place: dict[str, int], batch: Batch, prompt: Tensor, corruption: str) -> Iterator[Line]:
    tampered = batch.cls_labels == Label.TAMPERED
    views = model.config.views if dataset.features is None else 1
    cls_logits, masks = look(model, batch, prompt, views, lambda logits: (tampered | (logits.argmax(dim=-1) == Label.TAMPERED)).nonzero().flatten().tolist())
    judged = cls_logits.argmax(dim=-1).tolist()
    probs = (cls_logits.float() / model.config.cls_temperature).softmax(dim=-1)
    for i, name in enumerate(batch.ids):
        line = begin(dataset.records[place[name]], corruption)
        line.logits, line.probs = ([round(float(x), DIGITS) for x in row[i]] for row in (cls_logits, probs))
        line.predicted, line.area = judged[i], 0.0
        if i in masks:
            logits = resized_to(masks[i], batch.original_hw[i]).cpu().numpy()
            found = logits > 0 if judged[i] == Label.TAMPERED else np.zeros_like(logits, bool)
            line.area = round(float(found.mean()), DIGITS)
            if tampered[i]:
                _localize(line, logits, found, truth(dataset, place[name]), legacy_overlap(masks[i], batch.masks[i][0]))
        yield line


def truth(dataset: SidaDataset, index: int) -> np.ndarray:
    """bool [H, W] of a tampered picture, after the data set's corruption."""
    rgb, gray = decode(dataset.records[index])
    if dataset.augment is not None:
        gray = dataset.augment(rgb, gray, Draw(index, 0))[1]
    return gray > 127


def _localize(line: Line, logits: np.ndarray, found: np.ndarray, true: np.ndarray, legacy: tuple[float, float]) -> None:
    """Fill in what a tampered picture's masks, [H, W], amount to."""
    line.iou, line.f1, line.overlap = _overlap(found, true)
    line.oracle_iou, line.oracle_f1, line.oracle_overlap = _overlap(logits > 0, true)
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    line.f1_at = [_overlap(probability > threshold, true)[1] for threshold in THRESHOLDS]
    step = max(1, int((true.size / PIXELS) ** 0.5))
    sampled = true[::step, ::step].ravel()
    if 0 < sampled.sum() < sampled.size:
        line.oracle_auroc = round(float(roc_auc_score(sampled, logits[::step, ::step].ravel())), DIGITS)
    line.legacy = list(legacy)


def _overlap(mask: np.ndarray, true: np.ndarray) -> tuple[float, float, list[int]]:
    """IoU, F1, and [intersection, union]; both are 1 when nothing is tampered and nothing marked."""
    both, either = int((mask & true).sum()), int((mask | true).sum())
    iou = both / either if either else 1.0
    return round(iou, DIGITS), round(2 * iou / (1 + iou), DIGITS), [both, either]
