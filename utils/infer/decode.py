"""Three ways to read a verdict, a mask and a text from the network, for one image.

generate   the model writes its answer (greedy, KV cache); the class is read where it was trained, at the state that
           predicts the answer's first token; the mask at the [SEG] it wrote, or at a teacher-forced one if it wrote none.
forced     no text: class as above, and for a tampered image the answer template up to [SEG] over the same cache.
reference  the original's evaluate(): class at the *last* [CLS] of prompt and answer, masks for every [SEG] there, with
           the *first* [CLS] as the attention's query. For comparison with published numbers only.

Dimensions: T prompt tokens, A answer tokens, H hidden size, n masks, h x w the original image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from model.sida import SIDAForCausalLM
from model.tokens import positions_before
from model.types import Label, Size

DECODES = ("generate", "forced", "reference")


@dataclass
class Question:
    """One image and its prompt, as tensors on the model's device."""

    prompt_ids: Tensor  # int64 [1, T]
    tampered_ids: list[int]  # the tampered answer up to, and without, its [SEG]
    images_clip: Tensor  # [1, 3, 224, 224]
    images_sam: Tensor  # [1, 3, S, S]
    resized_hw: Size
    original_hw: Size
    max_new_tokens: int = 512
    stop_ids: tuple[int, ...] = ()
    on_token: Callable[[int], None] | None = None


@dataclass
class Reading:
    """What the network said."""

    cls_logits: Tensor  # [3]
    mask_logits: Tensor | None = None  # [n, h, w] for a tampered image; a pixel is tampered where > 0
    answer_ids: list[int] = field(default_factory=list)


@torch.inference_mode()
def read(model: SIDAForCausalLM, question: Question, decode: str = "generate") -> Reading:
    """Answer `question` by one of DECODES."""
    if decode not in DECODES:
        raise ValueError(f"decode is {decode!r}: expected one of {DECODES}")
    cache = DynamicCache(config=model.config)
    first = model(input_ids=question.prompt_ids, images_clip=question.images_clip, past_key_values=cache, use_cache=True, logits_to_keep=1)
    answer, states = [], first.hidden
    if decode != "forced":
        answer, states = _greedy(model, question, cache, first.logits, first.hidden)
    if decode == "reference":
        return _read_reference(model, question, answer, states)
    prompt = question.prompt_ids.shape[1]
    cls_logits = model.model.cls_head[0](first.hidden[:, -1])
    if int(cls_logits.argmax()) != Label.TAMPERED:
        return Reading(cls_logits[0], answer_ids=answer)
    wrote_seg = model.seg_id in answer
    seg = states[0, prompt + answer.index(model.seg_id) - 1] if wrote_seg else _forced_seg_state(model, question, cache)
    return Reading(cls_logits[0], _masks(model, question, seg[None], cls_logits), answer)


def _greedy(model: SIDAForCausalLM, question: Question, cache: DynamicCache, logits: Tensor, hidden: Tensor) -> tuple[list[int], Tensor]:
    """Continue a prefilled `cache`: answer ids, and the states [1, T + A - 1, H] of every token that has a successor."""
    answer: list[int] = []
    states = [hidden]
    while True:
        token = logits[:, -1].argmax(dim=-1, keepdim=True)
        answer.append(int(token))
        if question.on_token is not None:
            question.on_token(answer[-1])
        if answer[-1] in question.stop_ids or len(answer) >= question.max_new_tokens:
            return answer, torch.cat(states, dim=1)
        step = model(input_ids=token, past_key_values=cache, use_cache=True)
        logits = step.logits
        states.append(step.hidden)


def _forced_seg_state(model: SIDAForCausalLM, question: Question, cache: DynamicCache) -> Tensor:
    """[H]: the state that predicts [SEG] after the tampered answer, over the prompt's part of `cache`."""
    if extra := cache.get_seq_length() - question.prompt_ids.shape[1]:
        cache.crop(-extra)
    ids = torch.tensor([question.tampered_ids], device=question.prompt_ids.device)
    return model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).hidden[0, -1]


def _masks(model: SIDAForCausalLM, question: Question, states: Tensor, cls_logits: Tensor) -> Tensor:
    """[n, H] states and [1, 3] class logits -> [n, h, w] mask logits at the original size."""
    return model.segment([states], cls_logits, question.images_sam, [question.resized_hw], [question.original_hw])[0]


def _read_reference(model: SIDAForCausalLM, question: Question, answer: list[int], states: Tensor) -> Reading:
    ids = torch.cat([question.prompt_ids, torch.tensor([answer], device=question.prompt_ids.device)], dim=1)
    before = positions_before(ids, model.cls_id)[:, :-1]
    if not before.any():
        return Reading(torch.full((3,), float("nan")), answer_ids=answer)
    cls_logits = model.model.cls_head[0](states[before])
    if int(cls_logits[-1].argmax()) != Label.TAMPERED:
        return Reading(cls_logits[-1], answer_ids=answer)
    seg = states[positions_before(ids, model.seg_id)[:, :-1]]
    return Reading(cls_logits[-1], _masks(model, question, seg, cls_logits[:1]), answer)
