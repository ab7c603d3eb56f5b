"""`--decode reference` repeats the original's evaluate(): generated ids, class, masks; and the inference forward."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from chat import remove_repeated_tags
from model.sida import SIDAForCausalLM
from tests.parity import golden
from utils.infer.decode import Question, read

INFER = golden.load_json("stage1_infer")


@pytest.fixture(scope="module")
def merged() -> SIDAForCausalLM:
    return golden.merged_model()


@pytest.fixture
def model(merged: SIDAForCausalLM) -> Iterator[SIDAForCausalLM]:
    bias, lm_head = merged.model.cls_head[0][3].bias.data, merged.lm_head.weight.data
    saved = bias.clone(), lm_head.clone()
    yield merged
    bias.copy_(saved[0])
    lm_head.copy_(saved[1])


def ask(case: dict) -> Question:
    sample = golden.samples()[case["image"]]
    ids = golden.tokenizer().encode_multimodal(case["prompt"], 256)
    assert [i for n, i in enumerate(ids) if i != -200 or ids[n - 1] != -200] == case["input_ids"]
    return Question(ids, ([], [], []), sample.image_clip[None], sample.image_sam[None], sample.resized_hw, sample.original_hw, case["max_new_tokens"], (2,))


@pytest.mark.parametrize("name", list(INFER["evaluate"]))
def test_evaluate(model: SIDAForCausalLM, name: str) -> None:
    case, npz = INFER["evaluate"][name], golden.load_npz("stage1_infer")
    if name.startswith("scripted"):
        model.lm_head.weight.data.copy_(torch.from_numpy(npz["scripted_lm_head"]))
    if name.startswith(("force_class", "seg", "two_seg", "scripted_tampered")):  # the golden run raised this bias to force the class
        model.model.cls_head[0][3].bias.data[int(name[-1]) if name.startswith("force") else 2] += 10
    reading = read(model, ask(case), "reference")
    assert reading.answer_ids == case["new_tokens"]
    if "cls_logits_all" not in case:
        assert reading.cls_logits.isnan().all()
        return
    golden.close(reading.cls_logits, case["cls_logits_all"][-1])
    assert int(reading.cls_logits.argmax()) == case["predicted_class (last)"]
    shapes = [] if reading.mask_logits is None else [list(reading.mask_logits.shape)]
    assert shapes == case["mask_shapes"]
    if (stored := npz.get(f"eval/{name}/0/mask_s4")) is not None:
        golden.close(reading.mask_logits[:, ::4, ::4], stored)


@pytest.mark.parametrize("file", ["real_0.jpg", "full_synthetic_0.png", "tampered_0.png", "tampered_1.png"])
def test_teacher_forced_inference(model: SIDAForCausalLM, file: str) -> None:
    from utils.data.collate import collate

    batch, _ = collate([golden.samples()[file]])
    with torch.no_grad():
        out = model(**batch.model_inputs())
    golden.close(out.cls_logits, INFER["inference"][file]["logits"])
    if (stored := golden.load_npz("stage1_infer").get(f"inf/{file}/mask_s4")) is not None:
        golden.close(out.mask_logits[0][0, ::4, ::4], stored)


def test_forced_equals_the_full_forward(model: SIDAForCausalLM) -> None:
    """One pass over the cache reads what teacher forcing reads."""

    model.model.cls_head[0][3].bias.data[2] += 10
    sample = golden.samples()["tampered_0.png"]
    prompt = int((sample.input_ids == model.cls_id).nonzero()[0])
    ids = sample.input_ids.tolist()
    verdicts = ([], [], ids[prompt : ids.index(model.seg_id) + 1])
    asked = Question(sample.input_ids[:prompt].tolist(), verdicts, sample.image_clip[None], sample.image_sam[None], sample.resized_hw, sample.resized_hw)
    forced = read(model, asked, "forced")
    with torch.no_grad():
        full = model(sample.input_ids[None], images_clip=sample.image_clip[None], images_sam=sample.image_sam[None], resized_hw=[sample.resized_hw])
    torch.testing.assert_close(forced.cls_logits, full.cls_logits[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(forced.mask_logits, full.mask_logits[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", golden.load_json("more")["remove_repeated_tags"], ids=lambda case: case["i"][:20])
def test_repeated_tags(case: dict) -> None:
    assert remove_repeated_tags(case["i"]) == case["o"]
