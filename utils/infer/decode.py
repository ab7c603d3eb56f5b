"""Four ways to read a verdict, a mask and a text from the network, for any number of images at once.

generate   the model writes its answer (greedy, KV cache); the class is read where it was trained, at the state that
           predicts the answer's first token; the mask at the [SEG] it wrote, or at a teacher-forced one if it wrote none.
explain    the same, but the answer opens with the verdict sentence of that class: the head decides, the text says why. Its first
           sentence, which names the kind of tampering and no place, is written by all looks together.
forced     no text: class as above, and for a tampered image the answer template up to [SEG] over the same cache.
reference  the original's evaluate(): class at the *last* [CLS] of prompt and answer, masks for every [SEG] there, with
           the *first* [CLS] as the attention's query. For comparison with published numbers only.

Dimensions: B images, T prompt tokens (of the longest prompt), A answer tokens, H hidden size, n masks, h x w the original image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from model.sida import SIDAForCausalLM
from model.tokens import PAD_TOKEN_ID, positions_before
from model.types import Label, Size
from utils.infer.views import average, turned_size, upright

DECODES = ("generate", "explain", "forced", "reference")
ROOM = 256  # tokens by which the KV cache grows
REPEATS, LONGEST_LOOP = 4, 32  # an answer that ends in so many copies of so few tokens would never stop
SENTENCE = 32  # tokens of it at most
LOOKS_AT_ONCE = 4  # that an encoder takes on a CPU, whose caches the feature maps of more outgrow


@dataclass
class Question:
    """One image, as tensors on the model's device, and its prompt. V looks at the image are averaged, each a quarter turn further (views.py)."""

    prompt_ids: list[int]
    verdicts: tuple[list[int], ...]  # token ids of each class's verdict sentence; the tampered one ends in [SEG]
    images_clip: Tensor  # [V, 3, 224, 224], or the tower's features [V, P, D]
    images_sam: Tensor  # [V, 3, S, S], or SAM's embeddings [V, E, S/16, S/16]
    resized_hw: Size  # upright
    original_hw: Size
    max_new_tokens: int = 512
    stop_ids: tuple[int, ...] = ()
    full_stop: int | None = None  # the token that ends a sentence
    on_token: Callable[[int], None] | None = None

    @property
    def tampered_ids(self) -> list[int]:
        """The tampered verdict up to, and without, its [SEG]."""
        return self.verdicts[Label.TAMPERED][:-1]

    def looks(self) -> list[Question]:
        """A question for each of V looks; of several, with the mask wanted at the resized size."""
        if len(self.images_clip) == 1:
            return [self]
        sizes = [turned_size(self.resized_hw, k) for k in range(len(self.images_clip))]
        inputs = zip(self.images_clip.split(1), self.images_sam.split(1), sizes, strict=True)
        return [replace(self, images_clip=clip, images_sam=sam, resized_hw=size, original_hw=size) for clip, sam, size in inputs]


@dataclass
class Reading:
    """What the network said."""

    cls_logits: Tensor  # [3]
    mask_logits: Tensor | None = None  # [n, h, w] for a tampered image; a pixel is tampered where > 0
    answer_ids: list[int] = field(default_factory=list)
    embedding: Tensor | None = None  # SAM's, [V, E, S/16, S/16], when it was computed: in place of `images_sam` it saves SAM's encoder next time


class _Layer(DynamicLayer):
    """One layer's keys and values [B, heads, length, d], with room for more: its parent copies all of them for each new token."""

    room: tuple[Tensor, ...] = ()  # they are the start of these

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append [B, heads, t, d] to both -> both."""
        start = self.get_seq_length()
        if start == 0:
            return super().update(key_states, value_states)
        end = start + key_states.shape[2]
        if not self.room or end > self.room[0].shape[2]:
            self.room = tuple(F.pad(old, (0, 0, 0, end - start + ROOM)) for old in (self.keys, self.values))
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, start:end] = new
        self.keys, self.values = (room[:, :, :end] for room in self.room)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        super().batch_select_indices(indices)
        self.room = ()


class _Rows:
    """Rows of tokens that grow over one KV cache. A row that gets fewer tokens than another is padded on their left."""

    def __init__(self, model: SIDAForCausalLM, count: int, device: torch.device) -> None:
        self.model = model
        self.cache = Cache(layers=[_Layer() for _ in range(model.config.num_hidden_layers)])
        self.mask = torch.zeros(count, 0, dtype=torch.bool, device=device)  # of what is cached, False where padded

    def extend(self, added: Sequence[list[int]], images_clip: Tensor | None = None) -> Tensor:
        """Append token ids to each row -> their states [B, longest, H]."""
        longest = max(map(len, added))
        ids = torch.tensor([[PAD_TOKEN_ID] * (longest - len(row)) + row for row in added], device=self.mask.device)
        counts = torch.tensor([len(row) for row in added], device=self.mask.device)
        self.mask = torch.cat([self.mask, torch.arange(-longest, 0, device=self.mask.device) >= -counts[:, None]], dim=1)
        positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -longest:]
        out = self.model.model(
            inputs_embeds=self.model.embed(ids, images_clip),
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        return out.last_hidden_state

    def rewind(self, length: int, rows: list[int]) -> None:
        """Keep only `rows`, and of them only the first `length` columns."""
        if extra := self.cache.get_seq_length() - length:
            self.cache.crop(-extra)
        kept = torch.tensor(rows, device=self.mask.device)
        self.cache.batch_select_indices(kept)
        self.mask = self.mask[kept, :length]


class _Begun(NamedTuple):
    """Looks whose prompts have been read."""

    questions: Sequence[Question]
    rows: _Rows
    prompt: Tensor  # states [B, T, H]
    cls_logits: Tensor  # [B, 3]


def likeliest(cls_logits: Tensor) -> Tensor:
    """[B, 3] -> the class with the highest logit, [B]."""
    return cls_logits.argmax(dim=-1)


def read(model: SIDAForCausalLM, question: Question, decode: str = "generate") -> Reading:
    """Answer `question` by one of DECODES; ValueError for another."""
    return read_batch(model, [question], decode)[0]


@torch.inference_mode()
def read_batch(model: SIDAForCausalLM, questions: Sequence[Question], decode: str = "generate", judge: Callable[[Tensor], Tensor] = likeliest) -> list[Reading]:
    """Answer `questions` together, each as if alone, by one of DECODES; ValueError for another. `judge`: class logits [B, 3] -> labels [B].

    All questions have as many looks, whose class and mask logits are averaged; the first look writes the answer, but for what `_agree` says.
    """
    if decode not in DECODES:
        raise ValueError(f"decode is {decode!r}: expected one of {DECODES}")
    turns = list(zip(*(question.looks() for question in questions), strict=True))  # V x B
    writing = len(turns) if decode == "forced" else 1  # what writes is read apart from what does not
    groups = [[look for turn in part for look in turn] for part in (turns[:writing], turns[writing:]) if part]
    begun = [_begin(model, group) for group in groups]
    cls_logits = average(torch.cat([looks.cls_logits for looks in begun]), len(turns))
    judged = judge(cls_logits).tolist()
    openings = [question.verdicts[label] if decode == "explain" else [] for question, label in zip(questions, judged, strict=True)]
    if decode == "explain" and len(turns) > 1:
        openings = _agree(model, questions, begun, openings)
    readings = []
    for looks, how in zip(begun, (decode, "forced"), strict=False):
        readings += _go_on(model, looks, judged * (len(looks.questions) // len(questions)), how, openings)
    return [_together(question, cls_logits[i], readings[i :: len(questions)]) for i, question in enumerate(questions)]


def _together(question: Question, cls_logits: Tensor, looks: Sequence[Reading]) -> Reading:
    """The answer of all looks."""
    if len(looks) == 1:
        return looks[0]
    together = Reading(cls_logits, answer_ids=looks[0].answer_ids)
    if looks[0].mask_logits is not None:
        mask = torch.stack([upright(look.mask_logits, k) for k, look in enumerate(looks)]).mean(dim=0)
        together.mask_logits = F.interpolate(mask[:, None], question.original_hw, mode="bilinear", align_corners=False)[:, 0]
        together.embedding = torch.cat([look.embedding for look in looks])
    return together


def _in_parts(encode: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """`encode` of [N, ...], on a CPU of a few at a time."""
    return torch.cat([encode(part) for part in images.split(LOOKS_AT_ONCE)]) if images.device.type == "cpu" else encode(images)


def _begin(model: SIDAForCausalLM, questions: Sequence[Question]) -> _Begun:
    """Read the prompts, one look each."""
    clip = torch.cat([q.images_clip for q in questions])
    rows = _Rows(model, len(questions), clip.device)
    features = _in_parts(model.see, clip)
    prompt = rows.extend([q.prompt_ids for q in questions], features)
    return _Begun(questions, rows, prompt, model.class_logits(prompt[:, -1], features))


def _go_on(model: SIDAForCausalLM, begun: _Begun, judged: Sequence[int], decode: str, openings: Sequence[list[int]]) -> list[Reading]:
    """From read prompts to the answers and masks under these verdicts."""
    questions, rows, prompt, cls_logits = begun
    answers: list[list[int]] = [[] for _ in questions]
    written: list[Tensor] = []
    if decode != "forced":
        answers, written = _greedy(model, questions, rows, prompt[:, -1], openings, guarded=decode != "reference")
    if decode == "reference":
        return [_read_reference(model, q, prompt[i], answers[i], [states[i] for states in written]) for i, q in enumerate(questions)]
    tampered = [i for i, label in enumerate(judged) if label == Label.TAMPERED]
    segs = {i: written[answers[i].index(model.seg_id)][i] for i in tampered if model.seg_id in answers[i]}
    if silent := [i for i in tampered if i not in segs]:
        rows.rewind(prompt.shape[1], silent)
        segs |= zip(silent, rows.extend([questions[i].tampered_ids for i in silent])[:, -1], strict=True)
    readings = [Reading(logits, answer_ids=answer) for logits, answer in zip(cls_logits, answers, strict=True)]
    if tampered:
        embeddings = _in_parts(model.model.visual_model.encode, torch.cat([questions[i].images_sam for i in tampered]))
        masks = _masks(model, [questions[i] for i in tampered], [segs[i][None] for i in tampered], cls_logits[tampered], embeddings)
        for i, mask, embedding in zip(tampered, masks, embeddings, strict=True):
            readings[i].mask_logits, readings[i].embedding = mask, embedding[None]
    return readings


def _agree(model: SIDAForCausalLM, questions: Sequence[Question], begun: Sequence[_Begun], openings: Sequence[list[int]]) -> list[list[int]]:
    """The openings, and what all looks say next up to the end of a sentence: greedy, of the mean of their log-probabilities.

    `begun` holds every look, a turn's behind one another; their rows are as before afterwards.
    """
    room = [min(SENTENCE, question.max_new_tokens - len(opening)) for question, opening in zip(questions, openings, strict=True)]
    said: list[list[int]] = [[] for _ in questions]
    added, writing = list(openings), list(range(len(questions)))
    while writing:
        states = torch.cat([looks.rows.extend(added * (len(looks.questions) // len(added)))[:, -1] for looks in begun])
        tokens = average(model.lm_head(states).float().log_softmax(dim=-1), len(states) // len(questions)).argmax(dim=-1).tolist()
        for i in writing:
            said[i].append(tokens[i])
        writing = [i for i in writing if tokens[i] not in (*questions[i].stop_ids, questions[i].full_stop) and len(said[i]) < room[i]]
        added = [[token] if i in writing else [] for i, token in enumerate(tokens)]
    for looks in begun:
        looks.rows.rewind(looks.prompt.shape[1], list(range(len(looks.questions))))
    return [opening + more for opening, more in zip(openings, said, strict=True)]


def loop_length(ids: Sequence[int]) -> int:
    """How many of the last tokens are copies of those before them, in REPEATS equal pieces; 0 if they are not."""
    for period in range(1, min(LONGEST_LOOP, len(ids) // REPEATS) + 1):
        if ids[-period * REPEATS :] == ids[-period:] * REPEATS:
            return period * (REPEATS - 1)
    return 0


def _greedy(
    model: SIDAForCausalLM, questions: Sequence[Question], rows: _Rows, state: Tensor, openings: Sequence[list[int]], guarded: bool
) -> tuple[list[list[int]], list[Tensor]]:
    """Continue prefilled `rows`, whose last states are [B, H], each with its opening and then with what the model says.

    A row ends with a stop id or when it has said all it may. If `guarded`, one that is about to repeat itself says the next likeliest token
    instead, once, and ends where it repeats itself all the same.

    Returns the answers, and for each column of them the states [B, H] that predicted it.
    """
    answers: list[list[int]] = [[] for _ in questions]
    writing, written, warned = list(range(len(questions))), [], set[int]()
    while True:
        written.append(state)
        scores = model.lm_head(state)
        said = scores.argmax(dim=-1).tolist()
        tokens = [opening[len(answer)] if len(answer) < len(opening) else token for token, answer, opening in zip(said, answers, openings, strict=True)]
        for i in writing:
            if guarded and i not in warned and loop_length([*answers[i], tokens[i]]):
                warned.add(i)
                scores[i, tokens[i]] = -torch.inf
                tokens[i] = int(scores[i].argmax())
            answers[i].append(tokens[i])
            if questions[i].on_token is not None:
                questions[i].on_token(tokens[i])
        writing = [i for i in writing if tokens[i] not in questions[i].stop_ids and len(answers[i]) < questions[i].max_new_tokens]
        writing = [i for i in writing if not (guarded and loop_length(answers[i]))]
        if not writing:
            return [answer[: len(answer) - guarded * loop_length(answer)] for answer in answers], written
        state = rows.extend([[token] if i in writing else [] for i, token in enumerate(tokens)])[:, -1]


def _masks(model: SIDAForCausalLM, questions: Sequence[Question], states: list[Tensor], cls_logits: Tensor, images_sam: Tensor) -> list[Tensor]:
    """B x [n, H] states, [B, 3] class logits, pixels or embeddings -> B x [n, h, w] mask logits at the original sizes."""
    return model.segment(states, cls_logits, images_sam, [q.resized_hw for q in questions], [q.original_hw for q in questions])


def _read_reference(model: SIDAForCausalLM, question: Question, prompt: Tensor, answer: list[int], written: list[Tensor]) -> Reading:
    """`prompt` are states [T, H], padded on the left; `written` those that predict the answer's tokens, A x [H] or more."""
    ids = torch.tensor([question.prompt_ids + answer], device=prompt.device)
    states = torch.cat([prompt[-len(question.prompt_ids) :], *(state[None] for state in written[1 : len(answer)])])
    before = positions_before(ids, model.cls_id)[0, :-1]
    if not before.any():
        return Reading(prompt.new_full((3,), float("nan")), answer_ids=answer)
    cls_logits = model.class_logits(states[before], model.see(question.images_clip))
    if int(cls_logits[-1].argmax()) != Label.TAMPERED:
        return Reading(cls_logits[-1], answer_ids=answer)
    seg = states[positions_before(ids, model.seg_id)[0, :-1]]
    return Reading(cls_logits[-1], _masks(model, [question], [seg], cls_logits[:1], question.images_sam)[0], answer)
