from __future__ import annotations

import torch

from model.tokens import IGNORE_INDEX, PAD_TOKEN_ID
from model.types import Label
from utils.data.collate import collate
from utils.data.records import Sample, Unreadable


def _sample(name: str, label: Label, tokens: int, hw: tuple[int, int], unreadable: tuple[str, ...] = ()) -> Sample:
    ids = torch.arange(1, tokens + 1)
    return Sample(name, ids, ids.clone(), torch.zeros(3, 224, 224), torch.zeros(3, 8, 8), torch.ones(1, *hw), label, hw, (hw[0] * 2, hw[1] * 2), unreadable)


def test_pads_on_the_right_and_keeps_masks_of_tampered_samples_only() -> None:
    batch, unreadable = collate([_sample("a", Label.TAMPERED, 3, (8, 6)), _sample("b", Label.REAL, 5, (4, 8))])
    assert batch is not None
    assert unreadable == []
    assert batch.input_ids.tolist() == [[1, 2, 3, PAD_TOKEN_ID, PAD_TOKEN_ID], [1, 2, 3, 4, 5]]
    assert batch.labels.tolist() == [[1, 2, 3, IGNORE_INDEX, IGNORE_INDEX], [1, 2, 3, 4, 5]]
    assert batch.attention_mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert [tuple(mask.shape) for mask in batch.masks] == [(1, 8, 6), (0, 4, 8)]
    assert batch.cls_labels.tolist() == [2, 0]
    assert (batch.resized_hw, batch.original_hw, batch.ids) == ([(8, 6), (4, 8)], [(16, 12), (8, 16)], ["a", "b"])
    assert (batch.images_clip.shape, batch.images_sam.shape) == ((2, 3, 224, 224), (2, 3, 8, 8))


def test_an_unknown_token_stays_hidden() -> None:
    samples = [_sample(name, Label.REAL, 4, (4, 4)) for name in "ab"]
    samples[0].input_ids[1] = PAD_TOKEN_ID  # <unk> in a text
    batch, _ = collate(samples)
    assert batch.model_inputs()["attention_mask"].tolist() == [[True, False, True, True], [True] * 4]


def test_unreadable_items_are_listed_and_left_out() -> None:
    batch, unreadable = collate([Unreadable("x.png", "broken"), _sample("a", Label.REAL, 2, (4, 4), ("y.png", "z.png"))])
    assert batch is not None
    assert batch.ids == ["a"]
    assert unreadable == ["x.png", "y.png", "z.png"]


def test_nothing_readable() -> None:
    assert collate([Unreadable("x.png", "broken")]) == (None, ["x.png"])
