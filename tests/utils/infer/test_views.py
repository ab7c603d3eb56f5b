"""What several looks at a picture see is the average of what each sees alone, upright again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.checkpoint import load_for_training
from model.types import Label
from tests.tiny import build_tiny_lisa, build_tiny_set
from utils.data.collate import collate
from utils.data.conversation import answer, encode, question
from utils.data.dataset import SidaDataset, SidaProcessor
from utils.data.sid_set import read_split
from utils.data.transforms import read_rgb, sam_input
from utils.eval.judging import look
from utils.infer.decode import DECODES, Question, read, read_batch
from utils.infer.pipeline import SidaPipeline
from utils.infer.views import average, turned, turned_size, upright


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_set(tmp_path_factory.mktemp("set"), 2, ("train",))


@pytest.fixture(scope="module")
def pictures(root: Path) -> list[np.ndarray]:
    """Six, some of them not square."""
    found = [read_rgb(path) for path in sorted(root.glob("train/*/*_[01].png"))]
    assert any(rgb.shape[0] != rgb.shape[1] for rgb in found)
    return found


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory, pictures: list[np.ndarray]) -> SidaPipeline:
    """A random model whose verdicts differ from picture to picture."""
    torch.manual_seed(1)
    model, tokenizer = load_for_training(build_tiny_lisa(tmp_path_factory.mktemp("base")), "sida")
    pipe = SidaPipeline(model.eval(), tokenizer, "cpu", torch.float32)
    last = model.model.cls_head[0][3]
    with torch.no_grad():
        last.weight.mul_(30)
        readings = read_batch(model, [pipe._question(pipe.prepare(rgb), None, 8, None) for rgb in pictures], "forced")
        last.bias -= torch.stack([reading.cls_logits for reading in readings]).mean(dim=0)
    return pipe


def with_views(pipe: SidaPipeline, views: int, monkeypatch: pytest.MonkeyPatch) -> SidaPipeline:
    monkeypatch.setattr(pipe.model.config, "views", views)
    return pipe


@pytest.mark.parametrize("quarters", range(4))
def test_turning_the_input_is_turning_the_picture(pictures: list[np.ndarray], quarters: int) -> None:
    for rgb in pictures:
        square, size = sam_input(rgb, 64)
        expected, expected_size = sam_input(np.ascontiguousarray(np.rot90(rgb, quarters)), 64)
        again = turned(square, size, quarters)
        assert turned_size(size, quarters) == expected_size
        assert float((again - expected).abs().max()) <= 2.5 / 57  # two grey levels: see `resize`
        h, w = expected_size
        assert torch.equal(upright(again[..., :h, :w], quarters), square[..., : size[0], : size[1]])


def test_averages() -> None:
    assert average(torch.arange(6.0), 3).tolist() == [2, 3]


@pytest.mark.parametrize("views", [2, 4])
def test_looks_are_averaged(pipe: SidaPipeline, pictures: list[np.ndarray], views: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdict and mask from the very inputs of each look, asked alone with the verdict forced."""
    asked = [pipe._question(pipe.prepare(rgb), None, 8, None) for rgb in pictures]
    several = with_views(pipe, views, monkeypatch)
    together = read_batch(pipe.model, [several._question(several.prepare(rgb), None, 8, None) for rgb in pictures], "forced")
    judged = [Label(int(reading.cls_logits.argmax())) for reading in together]
    assert Label.TAMPERED in judged
    assert len(set(judged)) > 1
    for question_, reading, label in zip(asked, together, judged, strict=True):
        h, w = question_.resized_hw
        logits, masks = [], []
        for k in range(views):
            size = turned_size((h, w), k)
            clip = torch.rot90(question_.images_clip, k, (-2, -1))
            sam = turned(question_.images_sam, (h, w), k)
            ids = torch.tensor([[*question_.prompt_ids, *question_.tampered_ids, pipe.model.seg_id]])
            with torch.inference_mode():
                out = pipe.model(ids, images_clip=clip, images_sam=sam, resized_hw=[size])
            logits.append(out.cls_logits[0])
            masks.append(np.rot90(out.mask_logits[0][0].numpy(), -k))
        torch.testing.assert_close(reading.cls_logits, torch.stack(logits).mean(dim=0), atol=1e-4, rtol=0)
        assert (reading.mask_logits is not None) == (label is Label.TAMPERED)
        if reading.mask_logits is not None:
            mean = torch.tensor(np.mean(masks, axis=0))[None, None]
            expected = F.interpolate(mean, question_.original_hw, mode="bilinear", align_corners=False)[0]
            torch.testing.assert_close(reading.mask_logits, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("decode", DECODES)
def test_one_answer_whatever_the_decoding(pipe: SidaPipeline, pictures: list[np.ndarray], decode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is generated is the upright look's; --decode reference takes no other look."""
    alone = pipe(pictures, decode=decode, max_new_tokens=8)
    several = with_views(pipe, 4, monkeypatch)
    forced, told = several(pictures, decode="forced"), several(pictures, decode=decode, max_new_tokens=8, batch_size=2)
    for one, four, plain in zip(alone, told, forced, strict=True):
        if decode == "reference":
            assert (four.probs, four.text) == (one.probs, one.text)
        else:
            assert list(four.probs.values()) == pytest.approx(list(plain.probs.values()), abs=1e-5)
            assert (four.mask is None) == (four.label is not Label.TAMPERED)
        if decode == "generate":
            assert four.text == one.text


def worded(pipe: SidaPipeline, asked: Question, verdict: list[int], limit: int, full_stop: int | None) -> list[int]:
    """The verdict and six tokens more: of all looks up to the full stop or the limit, then of the upright one. From full forwards, without cache."""
    ids, looks = list(verdict), asked.images_clip
    while len(ids) < len(verdict) + 6:
        clips = looks if len(ids) < len(verdict) + limit else looks[:1]
        row = torch.tensor([asked.prompt_ids + ids])
        with torch.inference_mode():
            scores = [pipe.model(row, images_clip=clip[None]).logits[0, -1].log_softmax(dim=-1) for clip in clips]
        ids.append(int(torch.stack(scores).mean(dim=0).argmax()))
        looks = looks[:1] if ids[-1] == full_stop else looks
    return ids


def test_all_looks_word_the_first_sentence(pipe: SidaPipeline, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an explanation, after its verdict: to the limit, or to a full stop."""
    monkeypatch.setattr("utils.infer.decode.SENTENCE", 4)
    several, ends, texts, alone = with_views(pipe, 4, monkeypatch), [], [], []
    for rgb in pictures:
        asked = replace(several._question(several.prepare(rgb), None, 24, None), full_stop=None)
        verdict = asked.verdicts[int(read(pipe.model, asked, "forced").cls_logits.argmax())]
        want = worded(pipe, asked, verdict, 4, None)
        assert read(pipe.model, asked, "explain").answer_ids[: len(want)] == want
        alone.append(worded(pipe, asked, verdict, 0, None))
        ends.append(replace(asked, full_stop=want[len(verdict) + 1]))
        texts.append(worded(pipe, asked, verdict, 4, ends[-1].full_stop))
        assert read(pipe.model, ends[-1], "explain").answer_ids[: len(want)] == texts[-1]
    assert texts != alone
    for text, reading in zip(texts, read_batch(pipe.model, ends, "explain"), strict=True):
        assert reading.answer_ids[: len(text)] == text


def test_a_picture_asked_again_is_not_encoded_again(pipe: SidaPipeline, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    several = with_views(pipe, 4, monkeypatch)
    tampered = next(rgb for rgb in pictures if several(rgb, decode="forced").label is Label.TAMPERED)
    seen = several.look(tampered)
    first = several(seen, decode="forced")
    monkeypatch.setattr(pipe.model.model.visual_model.image_encoder, "forward", None)
    monkeypatch.setattr(pipe.model.model.vision_tower, "forward", None)
    again = several(seen, decode="forced")
    assert again.probs == first.probs
    assert np.array_equal(again.mask, first.mask)


def test_evaluation_sees_what_the_pipeline_sees(pipe: SidaPipeline, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several = with_views(pipe, 4, monkeypatch)
    model, records = pipe.model, read_split(root, "train")
    dataset = SidaDataset(records, SidaProcessor(pipe.tokenizer, model.config))
    batch, _ = collate([dataset[i] for i in range(len(records))])
    ids = torch.tensor(encode(pipe.tokenizer, model.config, question("sida"), answer(Label.TAMPERED, "sida"))[0])
    cls_logits, masks = look(model, batch, ids, 4, lambda logits: (logits.argmax(dim=-1) == Label.TAMPERED).nonzero().flatten().tolist())
    readings = read_batch(model, [several._question(several.prepare(record.image), None, 8, None) for record in records], "forced")
    assert sorted(masks) == [i for i, reading in enumerate(readings) if reading.mask_logits is not None] != []
    for i, reading in enumerate(readings):
        torch.testing.assert_close(cls_logits[i], reading.cls_logits, atol=1e-4, rtol=0)
        if i in masks:
            expected = F.interpolate(masks[i][None, None], batch.original_hw[i], mode="bilinear", align_corners=False)[0]
            torch.testing.assert_close(reading.mask_logits, expected, atol=1e-3, rtol=0)
