from __future__ import annotations

import dataclasses
import logging
import pickle
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from model.config import SidaConfig
from model.tokens import IGNORE_INDEX, SidaTokenizer
from model.types import Batch, Label
from tests.utils.data.conftest import write_picture
from utils.data.augment import Augmentation
from utils.data.collate import collate
from utils.data.dataset import SidaDataset, SidaProcessor
from utils.data.records import Record, Sample, Unreadable
from utils.data.sampler import BatchStream
from utils.data.sid_set import read_split
from utils.data.transforms import read_rgb

MakeConfig = Callable[..., SidaConfig]


@pytest.fixture
def processor(tokenizer: SidaTokenizer, make_config: MakeConfig) -> SidaProcessor:
    return SidaProcessor(tokenizer, make_config())


@pytest.fixture
def records(root: Path) -> list[Record]:
    return read_split(root, "train", descriptions=True)


def _break(records: list[Record], *names: str) -> None:
    for record in records:
        if record.id in names:
            record.image.write_bytes(b"broken")


def test_sample(processor: SidaProcessor, records: list[Record]) -> None:
    sample = processor.sample(records[3])
    assert (sample.id, sample.label) == ("tampered/t0.png", Label.TAMPERED)
    assert (sample.original_hw, sample.resized_hw) == ((40, 60), (171, 256))
    assert sample.image_clip.shape == (3, 224, 224)
    assert sample.image_sam.shape == (3, 256, 256)
    assert sample.mask.shape == (1, 171, 256)
    assert sample.mask.max() > 0
    assert sample.input_ids.dtype == sample.labels.dtype == torch.int64
    assert sample.input_ids.shape == sample.labels.shape
    assert (sample.labels == IGNORE_INDEX).all()


def test_mask_is_zero_unless_tampered(processor: SidaProcessor, records: list[Record]) -> None:
    real_with_mask = dataclasses.replace(records[0], mask=records[3].mask)
    assert not processor.sample(real_with_mask).mask.any()


@pytest.mark.parametrize(
    ("stage", "train_text", "learned"),
    [("sida", False, [False] * 6), ("sida", True, [True] * 6), ("description", False, [False, True, False, True, False, False])],
)
def test_what_is_learned(tokenizer: SidaTokenizer, make_config: MakeConfig, records: list[Record], stage: str, train_text: bool, learned: list[bool]) -> None:
    processor = SidaProcessor(tokenizer, make_config(stage=stage), train_text)
    assert [bool((processor.sample(record).labels != IGNORE_INDEX).any()) for record in records] == learned


def test_images_and_prompt_are_what_a_sample_holds(processor: SidaProcessor, records: list[Record]) -> None:
    """Chat goes through `images` and `prompt_ids`, training through `sample`: same input."""
    sample = processor.sample(records[0])
    image_clip, image_sam, resized_hw = processor.images(read_rgb(records[0].image))
    assert torch.equal(image_clip, sample.image_clip)
    assert torch.equal(image_sam, sample.image_sam)
    assert resized_hw == sample.resized_hw
    ids = processor.prompt_ids("Why?")
    assert ids[0] == processor.tokenizer.bos_id


def test_length_and_labels(processor: SidaProcessor, records: list[Record]) -> None:
    dataset = SidaDataset(records, processor)
    assert len(dataset) == 6
    assert dataset.labels == [0, 0, 1, 2, 2, 2]
    assert [dataset[i].id for i in range(6)] == [record.id for record in records]


def test_unreadable_image_is_replaced_by_the_next_of_its_class(processor: SidaProcessor, records: list[Record], caplog: pytest.LogCaptureFixture) -> None:
    _break(records, "tampered/t1.jpeg", "tampered/t2.bmp")
    dataset = SidaDataset(records, processor)
    with caplog.at_level(logging.WARNING):
        sample = dataset[4]
    assert isinstance(sample, Sample)
    assert sample.id == "tampered/t0.png"
    assert sample.unreadable == (str(records[4].image), str(records[5].image))
    assert str(records[4].image) in caplog.text


def test_unreadable_image_is_reported_when_not_replaced(processor: SidaProcessor, records: list[Record]) -> None:
    _break(records, "real/b.jpg")
    item = SidaDataset(records, processor, replace_unreadable=False)[1]
    assert isinstance(item, Unreadable)
    assert item.path == str(records[1].image)
    assert "cannot read" in item.reason


def _mask_gone(record: Record) -> Record:
    record.mask.unlink()
    return record


def _mask_of_other_size(record: Record) -> Record:
    write_picture(record.mask, 40, 61)
    return record


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_mask_gone, "no picture at .*t0_mask.png"),
        (_mask_of_other_size, r"mask .*t0_mask.png is \(40, 61\), its image \(40, 60\).*resize the mask"),
        (lambda record: dataclasses.replace(record, mask=None), "labelled tampered but has no mask"),
    ],
)
def test_unusable_mask(processor: SidaProcessor, records: list[Record], damage: Callable[[Record], Record], reason: str) -> None:
    records[3] = damage(records[3])
    with pytest.raises((ValueError, FileNotFoundError), match=reason):
        processor.sample(records[3])
    assert SidaDataset(records, processor)[3].id == "tampered/t1.jpeg"
    assert isinstance(SidaDataset(records, processor, replace_unreadable=False)[3], Unreadable)


def test_error_when_a_whole_class_is_unreadable(processor: SidaProcessor, records: list[Record]) -> None:
    _break(records, "real/a.PNG", "real/b.jpg")
    with pytest.raises(ValueError, match="none of the 2 real records can be read; the last: cannot read .*b.jpg"):
        SidaDataset(records, processor)[0]


def test_a_question_that_does_not_fit_is_no_bad_picture(tokenizer: SidaTokenizer, make_config: MakeConfig, records: list[Record]) -> None:
    """Replacing the picture would not help, so the error is not swallowed."""
    dataset = SidaDataset(records, SidaProcessor(tokenizer, make_config(model_max_length=300)), replace_unreadable=False)
    with pytest.raises(ValueError, match="model_max_length is 300"):
        dataset[0]


def test_no_records(processor: SidaProcessor) -> None:
    with pytest.raises(ValueError, match="no records"):
        SidaDataset([], processor)


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_continues_exactly(processor: SidaProcessor, records: list[Record], workers: int) -> None:
    """A stream started in the middle shows the same pictures as the one that ran through; each pass shows others."""
    dataset = SidaDataset(records, processor, augment=Augmentation(seed=5))

    def batches(position: int, count: int) -> list[Batch]:
        stream = BatchStream(dataset.labels, 2, seed=3, position=position)
        torch.manual_seed(position)  # what else is drawn does not matter
        return [batch for batch, _ in islice(DataLoader(dataset, batch_sampler=stream, collate_fn=collate, num_workers=workers), count)]

    whole = batches(0, 8)  # two passes
    for first, again in zip(whole[3:], batches(3, 5), strict=True):
        assert first.ids == again.ids
        assert torch.equal(first.images_sam, again.images_sam)
        assert all(torch.equal(*pair) for pair in zip(first.masks, again.masks, strict=True))
    seen = [{id_: pixels for batch in part for id_, pixels in zip(batch.ids, batch.images_sam, strict=True)} for part in (whole[:4], whole[4:])]
    assert not any(torch.equal(seen[0][id_], seen[1][id_]) for id_ in seen[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_data_loader(processor: SidaProcessor, records: list[Record], workers: int) -> None:
    dataset = pickle.loads(pickle.dumps(SidaDataset(records, processor)))
    loader = DataLoader(dataset, batch_sampler=BatchStream(dataset.labels, 2, seed=3), collate_fn=collate, num_workers=workers)
    batches = [batch for batch, _ in islice(loader, 4)]
    assert sorted(id_ for batch in batches for id_ in batch.ids) == sorted(record.id for record in records)
