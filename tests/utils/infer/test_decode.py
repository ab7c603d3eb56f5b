"""Many images at once are read as each alone, and a cached pass as the full one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint import load_for_training
from model.types import Label, SidaOutput
from tests.tiny import build_tiny_lisa, build_tiny_set
from utils.data.transforms import read_rgb
from utils.infer.decode import LOOKS_AT_ONCE, Question, Reading, _in_parts, loop_length, read, read_batch
from utils.infer.pipeline import SidaPipeline

PROMPTS = ("Is this [CLS] real?", "The tampered area is in the middle. Can you identify if this image is real? Please answer why.", None)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of three sizes and three looks."""
    return sorted(build_tiny_set(tmp_path_factory.mktemp("set"), 2, ("train",)).glob("train/*/*_[01].png"))


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory, pictures: list[Path]) -> SidaPipeline:
    """A random model whose verdicts differ from picture to picture."""
    torch.manual_seed(1)
    model, tokenizer = load_for_training(build_tiny_lisa(tmp_path_factory.mktemp("base")), "sida")
    pipe = SidaPipeline(model.eval(), tokenizer, "cpu", torch.float32)
    last = model.model.cls_head[0][3]
    logits = torch.stack([reading.cls_logits for reading in read_batch(model, questions(pipe, pictures), "forced")])
    with torch.no_grad():
        last.bias -= logits.mean(dim=0)
    return pipe


def questions(pipe: SidaPipeline, pictures: list[Path], tokens: int = 8) -> list[Question]:
    """One per picture, with prompts of three lengths and masks wanted at the training size."""
    asked = [pipe._question(pipe.prepare(path), PROMPTS[i % 3], tokens, None) for i, path in enumerate(pictures)]
    assert len({len(q.prompt_ids) for q in asked}) == 3
    assert len({q.resized_hw for q in asked}) > 1
    return [replace(q, original_hw=q.resized_hw) for q in asked]


def full_forward(pipe: SidaPipeline, question: Question) -> SidaOutput:
    """Teacher-forced on the tampered answer, without cache or batch."""
    ids = torch.tensor([[*question.prompt_ids, *question.tampered_ids, pipe.model.seg_id]])
    with torch.inference_mode():
        return pipe.model(ids, images_clip=question.images_clip, images_sam=question.images_sam, resized_hw=[question.resized_hw])


def assert_same(a: Reading, b: Reading) -> None:
    assert a.answer_ids == b.answer_ids
    torch.testing.assert_close(a.cls_logits, b.cls_logits, atol=1e-5, rtol=0, equal_nan=True)
    assert (a.mask_logits is None) == (b.mask_logits is None)
    if a.mask_logits is not None:
        torch.testing.assert_close(a.mask_logits, b.mask_logits, atol=1e-4, rtol=0)


def test_forced_batch_equals_full_forwards(pipe: SidaPipeline, pictures: list[Path]) -> None:
    asked = questions(pipe, pictures)
    readings = read_batch(pipe.model, asked, "forced")
    judged = [Label(int(reading.cls_logits.argmax())) for reading in readings]
    assert Label.TAMPERED in judged
    assert len(set(judged)) > 1
    for question, reading, label in zip(asked, readings, judged, strict=True):
        full = full_forward(pipe, question)
        torch.testing.assert_close(reading.cls_logits, full.cls_logits[0], atol=1e-5, rtol=0)
        assert (reading.mask_logits is not None) == (label is Label.TAMPERED)
        if reading.mask_logits is not None:
            torch.testing.assert_close(reading.mask_logits, full.mask_logits[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("decode", ["generate", "forced", "reference"])
def test_batch_equals_each_alone(pipe: SidaPipeline, pictures: list[Path], decode: str) -> None:
    asked = questions(pipe, pictures)
    for question, together in zip(asked, read_batch(pipe.model, asked, decode), strict=True):
        assert_same(together, read(pipe.model, question, decode))


def test_answers_of_different_lengths_equal_uncached_ones(pipe: SidaPipeline, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows end by their own limits and stop ids; each is what running everything again for each token writes."""
    monkeypatch.setattr("utils.infer.decode.ROOM", 2)  # the cache grows several times
    asked = questions(pipe, pictures, tokens=10)
    alone = [read(pipe.model, question).answer_ids for question in asked]
    asked = [replace(q, max_new_tokens=3 + 2 * i) if i % 2 else replace(q, stop_ids=(alone[i][4],)) for i, q in enumerate(asked)]
    for i, (question, reading) in enumerate(zip(asked, read_batch(pipe.model, asked), strict=True)):
        want, ids = [], torch.tensor([question.prompt_ids])
        while len(want) < question.max_new_tokens and not (want and want[-1] in question.stop_ids):
            with torch.inference_mode():
                want.append(int(pipe.model(ids, images_clip=question.images_clip).logits[0, -1].argmax()))
            ids = torch.cat([ids, torch.tensor([[want[-1]]])], dim=1)
        assert reading.answer_ids == want, i
        assert (reading.mask_logits is not None) == (int(reading.cls_logits.argmax()) == Label.TAMPERED)


def test_a_written_seg_is_where_the_mask_is_read(pipe: SidaPipeline, pictures: list[Path]) -> None:
    """One row writes a [SEG], the others get the template's, in one batch."""
    asked = questions(pipe, pictures)
    model = pipe.model
    tampered = [i for i, reading in enumerate(read_batch(model, asked, "forced")) if reading.mask_logits is not None]
    own = read(model, asked[tampered[0]]).answer_ids[2]
    seg, model.seg_id = model.seg_id, own
    try:
        together = read_batch(model, asked)
        for question, reading in zip(asked, together, strict=True):
            assert_same(reading, read(model, question))
    finally:
        model.seg_id = seg


def test_only_tampered_images_reach_sam(pipe: SidaPipeline, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    encoder = pipe.model.model.visual_model.image_encoder
    monkeypatch.setattr(encoder, "forward", lambda images, forward=encoder.forward: (seen.append(len(images)), forward(images))[1])
    readings = read_batch(pipe.model, questions(pipe, pictures), "forced")
    assert seen == [sum(reading.mask_logits is not None for reading in readings)]


def test_detect_takes_one_or_many(pipe: SidaPipeline, pictures: list[Path]) -> None:
    many = pipe.detect(pictures, batch_size=4)
    for path, prediction in zip(pictures, many, strict=True):
        alone = pipe.detect(path)
        assert alone.label is prediction.label
        assert alone.text == prediction.text
        assert list(alone.probs.values()) == pytest.approx(list(prediction.probs.values()), abs=1e-5)
        assert (alone.mask is None) == (prediction.mask is None)
        assert prediction.image.shape == read_rgb(path).shape
    assert pipe.detect([]) == []
    with pytest.raises(ValueError, match="batch_size is 0"):
        pipe.detect(pictures, batch_size=0)
    with pytest.raises(ValueError, match="on_text with a list of 6"):
        pipe(pictures, on_text=print)


@pytest.mark.parametrize(
    ("ids", "copies"),
    [([], 0), ([7], 0), ([7, 7, 7, 7], 3), ([1, 7, 7, 7], 0), ([5, 1, 2, 1, 2, 1, 2, 1, 2], 6), ([1, 2, 1, 2, 1, 2, 1], 0), (list(range(33)) * 4, 0)],
)
def test_loops_are_noticed(ids: list[int], copies: int) -> None:
    assert loop_length(ids) == copies


def test_an_answer_that_repeats_itself_is_cut(pipe: SidaPipeline, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that says token 9 wherever it may: without the guard, and in the original's decoding, the limit alone stops it."""
    monkeypatch.setattr(pipe.model.lm_head, "forward", lambda states: torch.nn.functional.one_hot(torch.full(states.shape[:-1], 9), 12).float())
    assert [pipe(pictures[0], decode=decode, max_new_tokens=20).ended for decode in ("generate", "reference", "forced")] == [False, False, True]
    asked = pipe._question(pipe.prepare(np.zeros((32, 32, 3), np.uint8)), None, 20, None)
    assert read(pipe.model, asked).answer_ids == [9, 9, 9, 0, 9]
    assert read(pipe.model, asked, "reference").answer_ids == [9] * 20


def test_an_answer_is_led_out_of_a_loop(pipe: SidaPipeline, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the next likeliest token, here the one that ends it; what is streamed is what is returned."""
    stop = pipe._question(pipe.prepare(pictures[0]), None, 20, None).stop_ids[0]
    likely = torch.zeros(max(stop, 9) + 1)
    likely[stop], likely[9] = 1, 2
    monkeypatch.setattr(pipe.model.lm_head, "forward", lambda states: likely.expand(*states.shape[:-1], -1).clone())
    streamed: list[int] = []
    asked = replace(pipe._question(pipe.prepare(pictures[0]), None, 20, None), on_token=streamed.append)
    assert read(pipe.model, asked).answer_ids == [9, 9, 9, stop] == streamed
    assert pipe(pictures[0]).ended


def test_an_explanation_opens_with_the_heads_verdict(pipe: SidaPipeline, pictures: list[Path]) -> None:
    """Whatever the model would say; classes and masks are those of the forced pass."""
    asked = questions(pipe, pictures, tokens=14)
    readings, forced = read_batch(pipe.model, asked, "explain"), read_batch(pipe.model, asked, "forced")
    assert len({int(reading.cls_logits.argmax()) for reading in readings}) > 1
    for question, reading, other in zip(asked, readings, forced, strict=True):
        verdict = question.verdicts[int(reading.cls_logits.argmax())]
        assert reading.answer_ids[: len(verdict)] == verdict
        assert len(reading.answer_ids) > len(verdict)
        assert_same(reading, replace(other, answer_ids=reading.answer_ids))


def test_on_a_cpu_encoders_take_a_few_looks_at_a_time() -> None:
    taken: list[int] = []

    def encode(images: torch.Tensor) -> torch.Tensor:
        taken.append(len(images))
        return images * 2

    images = torch.arange(2.0 * LOOKS_AT_ONCE + 1)
    assert torch.equal(_in_parts(encode, images), images * 2)
    assert taken == [LOOKS_AT_ONCE, LOOKS_AT_ONCE, 1]
