"""Preprocessing, prompts, ids, labels and batches against the original.

All comparisons are exact, the tensors of pictures with Pillow's resize in place of ours, which may differ by a grey level.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import SidaConfig, preset
from model.tokens import CLS_TOKEN, IMAGE_TOKEN_ID, SEG_TOKEN, SidaTokenizer
from model.types import Batch, Label
from tests.parity.golden import pillow_resize
from utils.data import conversation
from utils.data.collate import collate
from utils.data.dataset import SidaProcessor
from utils.data.records import Record, Sample
from utils.data.sid_set import read_split
from utils.data.transforms import read_rgb

DATA = Path(__file__).parent / "data"
ITEMS = json.loads((DATA / "stage1_dataset.json").read_text())
STAGE1 = np.load(DATA / "stage1_dataset.npz")
DESCRIPTION = np.load(DATA / "desc_forward.npz")
CONVERSATIONS = json.loads((DATA / "conversations.json").read_text())
TOKENIZER = SidaTokenizer.from_pretrained(DATA)
RECORDS = {record.image.name: record for record in read_split(DATA / "images", "train", descriptions=True)}
BATCHES = {
    "tampered_pair": ["tampered_0.png", "tampered_1.png"],
    "real": ["real_0.jpg"],
    "full_synthetic": ["full_synthetic_0.png"],
    "tampered0": ["tampered_0.png"],
    "real_syn_mixed": ["real_0.jpg", "full_synthetic_0.png"],
    "real_tampered_mixed": ["real_0.jpg", "tampered_0.png"],
    "tampered1_no_text": ["tampered_1.png"],
}


def config(stage: str = "sida", conv_type: str = "llava_v1") -> SidaConfig:
    return preset("debug", vocab_size=645, image_size=1024, stage=stage, conv_type=conv_type, model_max_length=1024 if stage == "description" else 512)


def sha256(array: np.ndarray | Tensor) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def collapse(row: Tensor, ids: Tensor, patches: int) -> list[int]:
    """`row` with one value per image instead of one per patch."""
    first = int((ids == IMAGE_TOKEN_ID).nonzero()[0])
    assert (ids[first : first + patches] == IMAGE_TOKEN_ID).all()
    return torch.cat([row[: first + 1], row[first + patches :]]).tolist()


def assert_same_tokens(batch: Batch, golden: np.lib.npyio.NpzFile, prefix: str) -> None:
    for ours, theirs in (("input_ids", "input_ids"), ("labels", "labels"), ("attention_mask", "attention_masks")):
        rows = [collapse(row, ids, 256) for row, ids in zip(getattr(batch, ours), batch.input_ids, strict=True)]
        assert rows == golden[f"{prefix}/{theirs}"].tolist(), ours


@pytest.fixture(scope="module")
def samples() -> dict[str, Sample]:
    processor = SidaProcessor(TOKENIZER, config())
    return {name: processor.sample(record) for name, record in RECORDS.items()}


@pytest.mark.parametrize("name", RECORDS)
def test_decoded_picture(name: str) -> None:
    rgb = read_rgb(RECORDS[name].image)
    assert list(rgb.shape) == ITEMS[name]["decoded_shape"]
    assert sha256(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)) == ITEMS[name]["decoded_bgr_sha256"]


@pytest.mark.parametrize("name", RECORDS)
def test_tensors(samples: dict[str, Sample], name: str) -> None:
    sample, golden = samples[name], ITEMS[name]
    assert sample.image_sam.dtype == sample.image_clip.dtype == sample.mask.dtype == torch.float32
    with mock.patch("utils.data.transforms.resize", pillow_resize):  # the original's own resize: the rest is bit for bit
        exact = SidaProcessor(TOKENIZER, config()).sample(RECORDS[name])
    assert sha256(exact.image_sam) == golden["images_sha256"]
    assert sha256(exact.image_clip) == golden["clip_sha256"]
    assert sha256(exact.mask) == golden["mask_sha256_f32"]
    for ours, theirs, grey_level in (
        (sample.image_clip, STAGE1[f"{name}/images_clip"], 1 / 255 / 0.26),
        (sample.image_sam[:, ::16, ::16], STAGE1[f"{name}/images_s16"], 1 / 57),
        (sample.mask, STAGE1[f"{name}/mask"], 1 / 255),
    ):
        difference = np.abs(ours.numpy() - theirs)
        assert difference.max() < 1.1 * grey_level  # the resize, see utils/data/transforms.py
        assert difference.mean() < 0.02 * grey_level
    assert list(sample.mask.shape) == golden["mask_shape"]
    assert list(sample.resized_hw) == golden["resize"]
    assert list(sample.original_hw) == golden["decoded_shape"][:2]
    assert int(sample.label) == golden["cls_label"]


@pytest.mark.parametrize("batch_name", [name for name in BATCHES if f"batch/{name}/labels" in STAGE1])
def test_first_stage_batches(samples: dict[str, Sample], batch_name: str) -> None:
    golden = ITEMS[f"batch/{batch_name}"]
    batch, unreadable = collate([samples[name] for name in BATCHES[batch_name]])
    assert batch is not None
    assert unreadable == []
    assert_same_tokens(batch, STAGE1, f"batch/{batch_name}")
    assert batch.cls_labels.tolist() == STAGE1[f"batch/{batch_name}/cls_labels"].tolist()
    assert [list(size) for size in batch.resized_hw] == golden["resize_list"]
    assert list(batch.images_sam.shape) == golden["keys"]["images"][1]
    assert list(batch.images_clip.shape) == golden["keys"]["images_clip"][1]
    # the original also carries one empty mask per untampered image; ours has none
    tampered = [int(label == Label.TAMPERED) for label in batch.cls_labels]
    assert [list(mask.shape) for mask in batch.masks] == [[n, *shape[1:]] for n, shape in zip(tampered, golden["masks"], strict=True)]


@pytest.mark.parametrize("batch_name", [name for name in BATCHES if f"{name}/labels" in DESCRIPTION])
def test_description_stage_batches(batch_name: str) -> None:
    processor = SidaProcessor(TOKENIZER, config("description"))
    batch, _ = collate([processor.sample(RECORDS[name]) for name in BATCHES[batch_name]])
    assert batch is not None
    assert_same_tokens(batch, DESCRIPTION, batch_name)


def test_every_golden_batch_is_compared() -> None:
    assert {key.split("/")[1] for key in STAGE1.files if key.startswith("batch/")} <= BATCHES.keys()
    assert {key.split("/")[0] for key in DESCRIPTION.files} <= BATCHES.keys()


def test_supervised_text_begins_at_cls_and_ends_at_eos() -> None:
    """A tampered picture with a description: the answer's [CLS] and [SEG] and the closing </s> are all learned."""
    sample = SidaProcessor(TOKENIZER, config("description")).sample(RECORDS["tampered_0.png"])
    learned = sample.labels[sample.labels != -100].tolist()
    assert learned == sample.input_ids[-len(learned) :].tolist()
    assert (learned[0], learned[-1]) == (TOKENIZER.id_of(CLS_TOKEN), TOKENIZER.eos_id)
    assert TOKENIZER.id_of(SEG_TOKEN) in learned


@pytest.mark.parametrize("name", RECORDS)
def test_training_conversation(name: str) -> None:
    record: Record = RECORDS[name]
    text = conversation.prompt("llava_v1", conversation.question("sida"))
    text = conversation.with_answer("llava_v1", text, conversation.answer(record.label, "sida"))
    assert [text.replace("<im_start><image><im_end>", "<image>")] == ITEMS[name]["conversation"]


@pytest.mark.parametrize("question", CONVERSATIONS["llava_v1"])
def test_chat_prompts(question: str) -> None:
    assert conversation.prompt("llava_v1", question) == CONVERSATIONS["llava_v1"][question]


def test_llava_llama_2() -> None:
    golden = CONVERSATIONS["llava_llama_2"]
    question, answer = conversation.question("sida"), conversation.answer(Label.TAMPERED, "sida")
    text = conversation.with_answer("llava_llama_2", conversation.prompt("llava_llama_2", question), answer)
    assert text.replace("<im_start><image><im_end>", "<image>") == golden["conv"]
    ids = torch.tensor(conversation.encode(TOKENIZER, config(conv_type="llava_llama_2"), question, answer)[0])
    assert collapse(ids, ids, 256) == golden["ids"]
