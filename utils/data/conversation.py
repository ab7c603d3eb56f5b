"""What is said to the network and what it should answer, as text and as token ids."""

from __future__ import annotations

import re

from model.config import CONV_TYPES, STAGES, SidaConfig
from model.tokens import CLS_TOKEN, END_TOKEN, EOS, IGNORE_INDEX, IM_END_TOKEN, IM_START_TOKEN, IMAGE_TOKEN, SEG_TOKEN, SidaTokenizer
from model.types import Label

QUESTION = "Can you identify if this image is real, full synthetic, or tampered image? Please mask the tampered regions if it is tampered"
VERDICTS = {
    Label.REAL: f"{CLS_TOKEN} The image is real",
    Label.FULL_SYNTHETIC: f"{CLS_TOKEN} The image is full synthetic",
    Label.TAMPERED: f"{CLS_TOKEN} The image is tampered {SEG_TOKEN}",
}
SAID = re.compile(rf"\s*(?:{re.escape(CLS_TOKEN)})?\s*The image is (real|full synthetic|tampered)\b", re.IGNORECASE)
SYSTEM = {
    "llava_v1": "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions.",
    "llava_llama_2": "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language.",
}


def question(stage: str) -> str:
    """What `stage` was trained to be asked."""
    _check("stage", stage, STAGES)
    return QUESTION + (" and answer why." if stage == "description" else ".")


def answer(label: Label, stage: str, description: str | None = None) -> str:
    """What `stage` should answer; `description` is said by the description stage only."""
    _check("stage", stage, STAGES)
    if stage == "sida":
        return VERDICTS[label]
    return " ".join(part for part in (VERDICTS[label], description, END_TOKEN) if part)


def read_answer(text: str) -> tuple[Label | None, str]:
    """The class that an answer's first sentence names, None if it names none, and what it says besides: `answer` backwards."""
    said = SAID.match(text)
    rest = text[said.end() :] if said else text
    for token in (CLS_TOKEN, SEG_TOKEN, END_TOKEN):
        rest = rest.replace(token, " ")
    return Label.parse(said[1]) if said else None, rest.strip().removeprefix(".").strip()


def prompt(conv_type: str, question: str) -> str:
    """The whole conversation up to where the assistant starts. Raises ValueError if `question` brings its own `<image>`."""
    _check("conv_type", conv_type, CONV_TYPES)
    if IMAGE_TOKEN in question:
        raise ValueError(f"the question contains {IMAGE_TOKEN}: {question!r}; leave it out, the picture is put before the question")
    turn = f"{IM_START_TOKEN}{IMAGE_TOKEN}{IM_END_TOKEN}\n{question}"
    if conv_type == "llava_v1":
        return f"{SYSTEM[conv_type]} USER: {turn} ASSISTANT:"
    return f"[INST] <<SYS>>\n{SYSTEM[conv_type]}\n<</SYS>>\n\n{turn} [/INST]"


def with_answer(conv_type: str, prompt: str, answer: str) -> str:
    """`prompt` followed by the assistant's turn, closed."""
    _check("conv_type", conv_type, CONV_TYPES)
    return f"{prompt} {answer}{' ' if conv_type == 'llava_llama_2' else ''}{EOS}"


def encode(tokenizer: SidaTokenizer, config: SidaConfig, question: str, answer: str | None = None, supervised: bool = False) -> tuple[list[int], list[int]]:
    """Token ids and language labels, equally long; each image patch is one IMAGE_TOKEN_ID.

    Labels are IGNORE_INDEX, except over the answer ([CLS] to </s>) when `supervised`. Both are cut at config.model_max_length;
    raises ValueError when the cut would take the answer's [CLS] or [SEG] or, without an answer, part of the prompt.
    """
    ids = tokenizer.encode_multimodal(prompt(config.conv_type, question), config.image_patches)
    reply = [] if answer is None else _answer_ids(tokenizer, config.conv_type, answer)
    marks = [tokenizer.id_of(CLS_TOKEN), tokenizer.id_of(SEG_TOKEN)]
    needed = len(ids) + max((i + 1 for i, token in enumerate(reply) if token in marks), default=0)
    limit = config.model_max_length
    if needed > limit:
        size = len(tokenizer.encode(question, bos=False))
        raise ValueError(
            f"the question has {size} tokens, which makes {needed} with the picture's {config.image_patches} and the rest; "
            f"model_max_length is {limit}: shorten the question by {needed - limit} tokens or raise model_max_length"
        )
    labels = [IGNORE_INDEX] * len(ids) + (reply if supervised else [IGNORE_INDEX] * len(reply))
    return (ids + reply)[:limit], labels[:limit]


def _answer_ids(tokenizer: SidaTokenizer, conv_type: str, answer: str) -> list[int]:
    # [CLS] is an added token, so the text on either side of it is tokenized apart anyway
    if not answer.startswith(CLS_TOKEN):
        raise ValueError(f"the answer is {answer!r}: expected it to start with {CLS_TOKEN}")
    return tokenizer.encode(with_answer(conv_type, "", answer), bos=False)


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}: expected one of {known}")
