from __future__ import annotations

from collections.abc import Callable

import pytest

from model.config import SidaConfig
from model.tokens import CLS_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_ID, SEG_TOKEN, SidaTokenizer
from model.types import Label
from utils.data.conversation import answer, encode, prompt, question, read_answer, with_answer

MakeConfig = Callable[..., SidaConfig]


@pytest.mark.parametrize(
    ("label", "stage", "description", "expected"),
    [
        (Label.REAL, "sida", None, "[CLS] The image is real"),
        (Label.FULL_SYNTHETIC, "sida", None, "[CLS] The image is full synthetic"),
        (Label.TAMPERED, "sida", "unused", "[CLS] The image is tampered [SEG]"),
        (Label.REAL, "description", "Soft light.", "[CLS] The image is real Soft light. [END]"),
        (Label.FULL_SYNTHETIC, "description", None, "[CLS] The image is full synthetic [END]"),
        (Label.TAMPERED, "description", "An edge.", "[CLS] The image is tampered [SEG] An edge. [END]"),
        (Label.TAMPERED, "description", None, "[CLS] The image is tampered [SEG] [END]"),
    ],
)
def test_answer(label: Label, stage: str, description: str | None, expected: str) -> None:
    assert answer(label, stage, description) == expected


def test_question() -> None:
    assert question("sida").endswith(" tampered regions if it is tampered.")
    assert question("description").endswith(" tampered regions if it is tampered and answer why.")


@pytest.mark.parametrize(("conv_type", "end", "closing"), [("llava_v1", "\nWhy? ASSISTANT:", " A</s>"), ("llava_llama_2", "\nWhy? [/INST]", " A </s>")])
def test_prompt_ends_where_the_assistant_starts(conv_type: str, end: str, closing: str) -> None:
    text = prompt(conv_type, "Why?")
    assert text.endswith("<im_start><image><im_end>" + end)
    assert with_answer(conv_type, text, "A") == text + closing


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: question("both"), r"stage is 'both': expected one of \('sida', 'description'\)"),
        (lambda: answer(Label.REAL, "both"), "stage is 'both'"),
        (lambda: prompt("v9", "?"), "conv_type is 'v9': expected one of"),
        (lambda: with_answer("v9", "", ""), "conv_type is 'v9'"),
        (lambda: prompt("llava_v1", "<image> is this real?"), "contains <image>.*leave it out"),
    ],
)
def test_bad_values(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("conv_type", ["llava_v1", "llava_llama_2"])
@pytest.mark.parametrize("label", Label)
@pytest.mark.parametrize("stage", ["sida", "description"])
def test_ids_are_those_of_the_whole_text(tokenizer: SidaTokenizer, make_config: MakeConfig, conv_type: str, label: Label, stage: str) -> None:
    """Prompt and answer are tokenized apart; nothing may change at the seam."""
    config = make_config(conv_type=conv_type, stage=stage, model_max_length=1024)
    text = answer(label, stage, "Too smooth.\nNo light.")
    ids, labels = encode(tokenizer, config, question(stage), text, supervised=True)
    whole = with_answer(conv_type, prompt(conv_type, question(stage)), text)
    assert ids == tokenizer.encode_multimodal(whole, config.image_patches)
    assert ids.count(IMAGE_TOKEN_ID) == 256
    start = ids.index(tokenizer.id_of(CLS_TOKEN))
    assert labels == [IGNORE_INDEX] * start + ids[start:]
    assert encode(tokenizer, config, question(stage), text)[1] == [IGNORE_INDEX] * len(ids)
    assert encode(tokenizer, config, question(stage))[0] == ids[:start]


def test_only_the_answers_cls_starts_the_labels(tokenizer: SidaTokenizer, make_config: MakeConfig) -> None:
    ids, labels = encode(tokenizer, make_config(), "Begin with [CLS], then [SEG].", answer(Label.TAMPERED, "sida"), supervised=True)
    assert ids.count(tokenizer.id_of(CLS_TOKEN)) == 2
    assert next(label for label in labels if label >= 0) == tokenizer.id_of(CLS_TOKEN)
    assert labels.count(tokenizer.id_of(CLS_TOKEN)) == labels.count(tokenizer.id_of(SEG_TOKEN)) == 1


def test_image_in_a_description_is_text(tokenizer: SidaTokenizer, make_config: MakeConfig) -> None:
    ids, _ = encode(tokenizer, make_config(stage="description", model_max_length=1024), "Why?", answer(Label.REAL, "description", "an <image> tag"))
    assert ids.count(IMAGE_TOKEN_ID) == 256


def test_truncation_keeps_the_limit_and_the_verdict(tokenizer: SidaTokenizer, make_config: MakeConfig) -> None:
    text = answer(Label.TAMPERED, "description", "edges " * 300)
    config = make_config(stage="description", model_max_length=400)
    ids, labels = encode(tokenizer, config, question("description"), text, supervised=True)
    assert len(ids) == len(labels) == 400
    whole = make_config(stage="description", model_max_length=4000)
    assert ids == encode(tokenizer, whole, question("description"), text)[0][:400]
    assert tokenizer.id_of(SEG_TOKEN) in labels


@pytest.mark.parametrize("label", [Label.REAL, Label.TAMPERED])
def test_limit_is_the_verdicts_last_mark(tokenizer: SidaTokenizer, make_config: MakeConfig, label: Label) -> None:
    """One token less than [CLS] (or [SEG]) needs is an error; exactly as many is not."""
    text = answer(label, "sida")
    ids, _ = encode(tokenizer, make_config(), "Why?", text)
    mark = tokenizer.id_of(SEG_TOKEN if label is Label.TAMPERED else CLS_TOKEN)
    needed = ids.index(mark) + 1
    assert encode(tokenizer, make_config(model_max_length=needed), "Why?", text)[0] == ids[:needed]
    with pytest.raises(ValueError, match=rf"model_max_length is {needed - 1}: shorten the question by 1 tokens or raise"):
        encode(tokenizer, make_config(model_max_length=needed - 1), "Why?", text)


def test_a_prompt_that_does_not_fit(tokenizer: SidaTokenizer, make_config: MakeConfig) -> None:
    size = len(encode(tokenizer, make_config(), "Why?")[0])
    assert len(encode(tokenizer, make_config(model_max_length=size), "Why?")[0]) == size
    asked = "the edges " * 200
    with pytest.raises(ValueError, match=rf"the question has {len(tokenizer.encode(asked, bos=False))} tokens.*model_max_length is 512"):
        encode(tokenizer, make_config(), asked)


def test_answer_must_start_with_cls(tokenizer: SidaTokenizer, make_config: MakeConfig) -> None:
    with pytest.raises(ValueError, match=r"the answer is 'It is real': expected it to start with \[CLS\]"):
        encode(tokenizer, make_config(), "Why?", "It is real")


@pytest.mark.parametrize("label", Label)
def test_an_answer_is_read_back(label: Label) -> None:
    assert read_answer(answer(label, "description", "Type: x. Areas: none.")) == (label, "Type: x. Areas: none.")
    assert read_answer(answer(label, "sida")) == (label, "")


def test_an_answer_without_a_verdict() -> None:
    assert read_answer("It is odd. [END]") == (None, "It is odd.")
    assert read_answer("the image is full synthetic. It glows") == (Label.FULL_SYNTHETIC, "It glows")
    assert read_answer("The image is realistic") == (None, "The image is realistic")
