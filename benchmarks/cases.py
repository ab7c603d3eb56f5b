"""What is measured: this code's way and the baseline's, and how far their results differ."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks import baseline
from benchmarks.networks import judge
from model.types import Batch, Label
from utils.data.collate import collate
from utils.data.dataset import SidaDataset, SidaProcessor
from utils.data.records import Record, Sample
from utils.infer.decode import Question, Reading, read_batch
from utils.infer.pipeline import SidaPipeline
from utils.train.config import TrainConfig
from utils.train.features import open_cache

ANSWER = 64  # tokens of the baseline's answer to which a verdict is compared


@dataclass
class Case:
    """Both sides are called in turn; `differ` takes both results and gives the largest absolute difference."""

    name: str
    ours: Callable[[], object]
    plain: Callable[[], object]
    differ: Callable[[object, object], float]
    bar: float | None = None  # least ratio plain / ours
    prepare: Callable[[], None] = lambda: None
    tolerance: float = 1e-3  # of `differ`, fp32
    model: nn.Module | None = None  # whose operations are counted for the floor; None when other processes do part of the work


def ask(pipe: SidaPipeline, record: Record, tokens: int) -> Question:
    """One picture's question; its answer has `tokens` tokens, whatever they are."""
    (read,) = [SidaDataset([record], pipe.processor)[0]]
    asked = pipe._question(pipe.prepare(record.image), None, tokens, None)
    return replace(asked, stop_ids=(), original_hw=read.original_hw)


def read_difference(ours: Reading, plain: Reading) -> float:
    """Of class and mask logits; infinite when the tokens differ."""
    if ours.answer_ids and ours.answer_ids != plain.answer_ids:
        return float("inf")
    parts = [(ours.cls_logits - plain.cls_logits).abs().max()]
    if plain.mask_logits is not None:
        parts.append((ours.mask_logits - plain.mask_logits).abs().max())
    return max(map(float, parts))


def reading_cases(pipe: SidaPipeline, record: Record, lengths: Sequence[int], bars: dict[str, float]) -> Iterator[Case]:
    """Verdicts against an uncached answer, answers against uncached ones."""

    def ours(asked: Question, decode: str) -> Reading:
        with mock.patch("utils.infer.decode.loop_length", return_value=0):  # random weights repeat themselves, in the baseline too
            return read_batch(pipe.model, [asked], decode)[0]

    for label in (Label.TAMPERED, Label.REAL):
        name, asked = f"verdict on a {label.title} picture", ask(pipe, record, ANSWER)
        plain = functools.partial(baseline.answer, pipe.model, asked, ANSWER)
        yield Case(
            name, functools.partial(ours, asked, "forced"), plain, read_difference, bars.get(name), functools.partial(judge, pipe, label), model=pipe.model
        )
    for tokens in lengths:
        name, asked = f"answer of {tokens} tokens", ask(pipe, record, tokens)
        plain = functools.partial(baseline.answer, pipe.model, asked, tokens)
        yield Case(
            name,
            functools.partial(ours, asked, "generate"),
            plain,
            read_difference,
            bars.get(name),
            functools.partial(judge, pipe, Label.REAL),
            model=pipe.model,
        )


def batch_of(pipe: SidaPipeline, records: Sequence[Record]) -> Batch:
    """Their samples, collated."""
    return collate([pipe.processor.sample(record) for record in records])[0]


def step(pipe: SidaPipeline, batch: Batch) -> Tensor:
    """This code's forward and backward -> total loss."""
    pipe.model.zero_grad()
    total = pipe.model(**batch.model_inputs()).losses.total
    total.backward()
    return total.detach()


def plain_step(pipe: SidaPipeline, batch: Batch) -> Tensor:
    """The baseline's."""
    pipe.model.zero_grad()
    with baseline.attention_written_out(pipe.model):
        total = baseline.forward(pipe.model, batch)[0]
        total.backward()
    return total.detach()


def training_cases(pipe: SidaPipeline, by_class: dict[Label, list[Record]], bars: dict[str, float]) -> Iterator[Case]:
    """Forward and backward of a batch of two."""
    pairs = {"real": by_class[Label.REAL][:2], "tampered": by_class[Label.TAMPERED][:2], "mixed": [by_class[Label.REAL][0], by_class[Label.TAMPERED][0]]}
    for name, records in pairs.items():
        title, batch = f"training step, 2 {name} pictures", batch_of(pipe, records)
        ours, plain = (functools.partial(call, pipe, batch) for call in (step, plain_step))
        yield Case(title, ours, plain, lambda a, b: float((a - b).abs()), bars.get(title), model=pipe.model)


@contextmanager
def judging(pipe: SidaPipeline, labels: Sequence[Label]) -> Iterator[None]:
    """Verdicts as told: random weights would decide by chance for how many pictures SAM runs."""
    told = 1e3 * F.one_hot(torch.tensor([int(label) for label in labels]), len(Label)).float()
    hook = pipe.model.model.cls_head[0].register_forward_hook(lambda module, inputs, logits: logits + told)
    try:
        yield
    finally:
        hook.remove()


def validation_cases(pipe: SidaPipeline, records: Sequence[Record], sizes: Sequence[int], bars: dict[str, float]) -> Iterator[Case]:
    """Right verdicts, and masks, of 16 pictures, a third of each class: forced, in batches, against one by one with the true answer."""
    records = records[:16]
    samples = [pipe.processor.sample(record) for record in records]
    asked, labels = [ask(pipe, record, 1) for record in records], [record.label for record in records]

    def ours(size: int) -> list[Tensor]:
        readings = []
        for i in range(0, len(asked), size):
            with judging(pipe, labels[i : i + size]):
                readings += read_batch(pipe.model, asked[i : i + size], "forced")
        return [reading.cls_logits for reading in readings]

    def plain() -> list[Tensor]:
        out = []
        for sample in samples:
            with judging(pipe, [sample.label]):
                out += baseline.validate(pipe.model, [sample])
        return out

    def differ(ours: list[Tensor], plain: list[Tensor]) -> float:
        return float((torch.stack(ours) - torch.stack(plain)).abs().max())

    for size in sizes:
        name = f"validation of 16 pictures, batch {size}"
        yield Case(name, functools.partial(ours, size), plain, differ, bars.get(name), functools.partial(judge, pipe, None), model=pipe.model)


class Plain(torch.utils.data.Dataset):
    """The baseline's data set."""

    def __init__(self, records: Sequence[Record], processor: SidaProcessor) -> None:
        self.records, self.processor = records, processor

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> Sample:
        return baseline.load(self.records[i], self.processor)


def walk(dataset: torch.utils.data.Dataset) -> list[Batch]:
    """All of it, two at a time, read by two workers."""
    return [batch for batch, _ in DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=collate)]


def loading_cases(pipe: SidaPipeline, records: Sequence[Record], bars: dict[str, float]) -> Iterator[Case]:
    """One pass over `records` with two workers."""

    def differ(ours: list[Batch], plain: list[Batch]) -> float:
        return max(float((a.images_sam - b.images_sam).abs().max()) for a, b in zip(ours, plain, strict=True))

    name, kept = "data loading, 2 workers", SidaDataset(records, pipe.processor)
    # a resize may differ by a grey level, which is 0.02 of SAM's scale
    ours, plain = (functools.partial(walk, dataset) for dataset in (kept, Plain(records, pipe.processor)))
    yield Case(name, ours, plain, differ, bars.get(name), tolerance=0.05)


def epoch_cases(pipe: SidaPipeline, records: Sequence[Record], folder: Path, bars: dict[str, float]) -> Iterator[Case]:
    """Read `records` and train on them, two at a time: with --cache_features after its first epoch, and without."""
    cfg = TrainConfig(version=str(folder), precision="fp32", cache_features=str(folder / "features"), val_batch_size=2, workers=0)
    dataset = SidaDataset(records, pipe.processor)

    def fill() -> None:
        dataset.features = open_cache(cfg, pipe.model, pipe.processor, records, torch.device("cpu"))

    def differ(ours: list[Tensor], plain: list[Tensor]) -> float:
        return float((torch.stack(ours) - torch.stack(plain)).abs().max())

    name = f"second epoch of {len(records)} pictures with --cache_features"
    # features are kept in half precision
    yield Case(
        name,
        lambda: [step(pipe, batch) for batch in walk(dataset)],
        lambda: [plain_step(pipe, batch) for batch in walk(Plain(records, pipe.processor))],
        differ,
        bars.get(name),
        fill,
        tolerance=0.02,
    )
