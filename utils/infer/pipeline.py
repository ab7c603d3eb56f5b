"""A checkpoint that answers about pictures: the same object behind chat, predict, the web page and everything built on them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.checkpoint import load_pretrained
from model.quantize import quantize
from model.sida import SIDAForCausalLM
from model.tokens import END_TOKEN, SidaTokenizer
from model.types import Label, Size
from utils.data.conversation import answer as verdict_text
from utils.data.conversation import question as trained_question
from utils.data.dataset import SidaProcessor
from utils.infer.decode import Question, Reading, read_batch
from utils.infer.intake import Opened, Picture, open_picture
from utils.infer.prediction import Prediction
from utils.infer.views import turned

AT_ONCE = 64.0  # megapixels of one batch
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What the original prints whatever the model wrote; only --decode reference does.
CANNED = {
    Label.REAL: "[CLS] This image is classified as real. It shows no signs of tampering or synthesis.",
    Label.FULL_SYNTHETIC: "[CLS] This image is classified as full synthetic. It appears entirely artificially generated.",
    Label.TAMPERED: "[CLS] This image is classified as tampered. It has been altered. [SEG] A mask highlighting the tampered region is provided.",
}


def choose_device(name: str | None = None) -> str:
    """`name`, or the GPU when there is one."""
    if name and name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device is {name!r} but torch finds no GPU: use --device cpu")
    return name or ("cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class Seen:
    """A picture and what the encoders made of it: asked again, it is not encoded again."""

    opened: Opened
    images_clip: Tensor  # V looks [V, 3, 224, 224], or the tower's features [V, P, D]
    images_sam: Tensor  # SAM's inputs [V, 3, S, S]; its embeddings [V, E, S/16, S/16] once a mask was decoded
    resized_hw: Size

    def upright(self) -> Seen:
        """The first look alone."""
        return replace(self, images_clip=self.images_clip[:1], images_sam=self.images_sam[:1])


def _batches(images: Iterable[Opened], size: int) -> Iterator[list[Opened]]:
    """`size` pictures each, fewer when they are large; a batch that is full does not wait for the next picture."""
    batch: list[Opened] = []
    for image in images:
        if batch and sum(one.megapixels for one in batch) + image.megapixels > AT_ONCE:
            yield batch
            batch = []
        batch.append(image)
        if len(batch) == size or image.megapixels > AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


class SidaPipeline:
    """Ask a checkpoint about pictures.

    pipe = SidaPipeline.from_pretrained("ck/SIDA-tiny"); pipe("photo.jpg"); pipe([...], batch_size=8); for p in pipe.stream(paths): ...
    """

    def __init__(self, model: SIDAForCausalLM, tokenizer: SidaTokenizer, device: str, dtype: torch.dtype, folder: Path | None = None) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.device, self.dtype, self.folder = device, dtype, folder
        self.processor = SidaProcessor(tokenizer, model.config)
        self._prompt_ids = lru_cache(maxsize=16)(self.processor.prompt_ids)  # tokenising takes as long as a small picture's pixels
        self._verdicts = tuple(tokenizer.encode(verdict_text(label, "sida"), bos=False) for label in Label)
        self.decode = "explain" if model.model.experts else "generate"  # a language model does not know what experts say, and might contradict them

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, precision: str | None = None, device: str | None = None, bits: int | None = None, **overrides: Any
    ) -> SidaPipeline:
        """Load a SIDA folder. `precision` is fp32, bf16 or fp16 (default: bf16 on a GPU, fp32 on a CPU); `bits` 8 or 4 quantises the
        language model; `overrides` are SidaConfig fields. FileNotFoundError or ValueError, with the fix, for what does not fit."""
        device = choose_device(device)
        precision = precision or ("bf16" if device.startswith("cuda") else "fp32")
        if precision == "fp16" and not device.startswith("cuda"):
            raise ValueError("precision fp16 is not supported on a CPU: use bf16 or fp32")
        dtype = DTYPES[precision]
        model, tokenizer = load_pretrained(folder, dtype=dtype, **overrides)
        if bits:
            quantize(model, bits, dtype)
        return cls(model.to(device).eval(), tokenizer, device, dtype, Path(folder).resolve())

    def detect(self, images: Picture | Sequence[Picture], batch_size: int = 8, threshold: float | None = None) -> Prediction | list[Prediction]:
        """Class and mask without a written answer: one pass over the prompt, and SAM only where it is tampered. As `__call__`."""
        return self(images, decode="forced", batch_size=batch_size, threshold=threshold)

    def __call__(
        self,
        images: Picture | Opened | Seen | Sequence[Picture],
        question: str | None = None,
        *,
        decode: str | None = None,
        batch_size: int = 8,
        max_new_tokens: int = 512,
        threshold: float | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Prediction | list[Prediction]:
        """Ask about one picture (see `intake.Picture`), or about a list of them, `batch_size` at a time; one gives one answer, a list a list.

        `question` defaults to the one the checkpoint was trained on, `decode` to explain where it has experts, else to generate. A picture is fake
        when the probability of that reaches `threshold`; by default the likeliest class decides. `on_text` receives the text so far of one
        picture's answer, each time it grows.
        FileNotFoundError or ValueError for a picture, question, decode or batch size that does not do.
        """
        decode = decode or self.decode
        if not isinstance(images, list | tuple):
            return self._answer([images], question, decode, max_new_tokens, threshold, on_text)[0]
        if on_text is not None:
            raise ValueError(f"on_text with a list of {len(images)} pictures: it follows one answer, ask about one picture at a time")
        return list(self.stream(images, question, decode=decode, batch_size=batch_size, max_new_tokens=max_new_tokens, threshold=threshold))

    def stream(
        self,
        images: Iterable[Picture | Opened],
        question: str | None = None,
        *,
        decode: str = "forced",
        batch_size: int = 8,
        max_new_tokens: int = 512,
        threshold: float | None = None,
    ) -> Iterator[Prediction]:
        """Answers in order, while `images` are still coming: `batch_size` at a time, fewer when they are large. As `__call__`."""
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: expected at least 1")
        for batch in _batches(map(open_picture, images), batch_size):
            yield from self._answer(batch, question, decode, max_new_tokens, threshold)

    @torch.inference_mode()
    def look(self, image: Picture | Opened) -> Seen:
        """Open a picture and run CLIP over it once for all questions to come; SAM follows when a mask is first asked for."""
        seen = self.prepare(image)
        seen.images_clip = self.model.see(seen.images_clip)
        return seen

    def prepare(self, image: Picture | Opened) -> Seen:
        """Open a picture and turn it into the encoders' inputs."""
        opened = open_picture(image)
        clip, sam, resized = self.processor.images(opened.rgb)
        clip, sam = (pixels.to(self.device, self.dtype) for pixels in (clip, sam))  # turned there: a quarter of the bytes on the way
        quarters = range(self.model.config.views)
        clips = torch.stack([turned(clip, clip.shape[-2:], k) for k in quarters])
        sams = torch.stack([turned(sam, resized, k) for k in quarters])
        return Seen(opened, clips, sams, resized)

    def _answer(
        self,
        images: Sequence[Picture | Opened | Seen],
        text: str | None,
        decode: str,
        max_new_tokens: int,
        threshold: float | None,
        on_text: Callable[[str], None] | None = None,
    ) -> list[Prediction]:
        """One batch."""
        start = time.perf_counter()
        seen = [image if isinstance(image, Seen) else self.prepare(image) for image in images]
        asked = [one.upright() if decode == "reference" else one for one in seen]
        questions = [self._question(one, text, max_new_tokens, on_text) for one in asked]
        readings = read_batch(self.model, questions, decode, lambda logits: self._judge(logits, threshold))
        for one, reading in zip(seen, readings, strict=True):
            one.images_sam = one.images_sam if reading.embedding is None else reading.embedding
        verdicts = self._decide(torch.stack([reading.cls_logits for reading in readings]), threshold)
        answered = [(reading, *verdict, self._mask(reading)) for reading, verdict in zip(readings, verdicts, strict=True)]
        seconds = (time.perf_counter() - start) / len(images)
        ended = [decode == "forced" or reading.answer_ids[-1] in question.stop_ids for question, reading in zip(questions, readings, strict=True)]
        return [
            Prediction(one.opened, label, probs, self._text(reading, label, decode), mask, seconds, whole)
            for one, (reading, label, probs, mask), whole in zip(seen, answered, ended, strict=True)
        ]

    def _question(self, seen: Seen, text: str | None, max_new_tokens: int, on_text: Callable[[str], None] | None) -> Question:
        prompt_ids = self._prompt_ids(text or trained_question(self.model.config.stage))
        room = self.model.config.max_position_embeddings - len(prompt_ids)
        stop = (self.tokenizer.eos_id, *([self.tokenizer.id_of(END_TOKEN)] if END_TOKEN in self.tokenizer.added else []))
        return Question(
            prompt_ids=prompt_ids,
            verdicts=self._verdicts,
            images_clip=seen.images_clip,
            images_sam=seen.images_sam,
            resized_hw=seen.resized_hw,
            original_hw=seen.opened.rgb.shape[:2],
            max_new_tokens=min(max_new_tokens, room),
            stop_ids=stop,
            full_stop=self.tokenizer.encode("a.", bos=False)[-1],
            on_token=self._streamer(on_text),
        )

    def _streamer(self, on_text: Callable[[str], None] | None) -> Callable[[int], None] | None:
        if on_text is None:
            return None
        ids: list[int] = []

        def on_token(token: int) -> None:
            ids.append(token)
            on_text(self.tokenizer.decode(ids, skip_special=True))

        return on_token

    @staticmethod
    def _mask(reading: Reading) -> np.ndarray | None:
        if reading.mask_logits is None or not len(reading.mask_logits):
            return None
        return (reading.mask_logits[0] > 0).cpu().numpy()

    def _probabilities(self, cls_logits: Tensor) -> Tensor:
        return (cls_logits.float() / self.model.config.cls_temperature).softmax(dim=-1)

    def _judge(self, cls_logits: Tensor, threshold: float | None) -> Tensor:
        """[B, 3] -> labels [B]."""
        if threshold is None:
            return cls_logits.argmax(dim=-1)
        fake = 1 - self._probabilities(cls_logits)[:, Label.REAL] >= threshold
        return torch.where(fake, 1 + cls_logits[:, 1:].argmax(dim=-1), Label.REAL)

    def _decide(self, cls_logits: Tensor, threshold: float | None) -> list[tuple[Label | None, dict[str, float]]]:
        """[B, 3] -> label and probabilities of each, none where there is no number: read from the device once, not for each picture."""
        labels, probs = self._judge(cls_logits, threshold).tolist(), self._probabilities(cls_logits).tolist()
        return [
            (None, {}) if any(map(math.isnan, row)) else (Label(chosen), {label.title: row[label] for label in Label})
            for chosen, row in zip(labels, probs, strict=True)
        ]

    def _text(self, reading: Reading, label: Label | None, decode: str) -> str:
        if decode == "reference" and label is not None and self.model.config.stage == "sida":
            return CANNED[label]
        if decode == "forced":
            return verdict_text(label, "sida")
        return self.tokenizer.decode(reading.answer_ids, skip_special=True).strip()
