"""A checkpoint that answers about pictures: the same object behind chat and everything built on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.checkpoint import load_pretrained
from model.quantize import quantize
from model.sida import SIDAForCausalLM
from model.tokens import END_TOKEN, SidaTokenizer
from model.types import Label
from utils.data.conversation import answer as verdict_text
from utils.data.conversation import question as trained_question
from utils.data.dataset import SidaProcessor
from utils.data.transforms import read_rgb
from utils.infer.decode import Question, Reading, read_batch
from utils.infer.visualize import overlay, write_picture

Picture = str | Path | np.ndarray  # a file, or uint8 RGB [H, W, 3]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What the original prints whatever the model wrote; only --decode reference does.
CANNED = {
    Label.REAL: "[CLS] This image is classified as real. It shows no signs of tampering or synthesis.",
    Label.FULL_SYNTHETIC: "[CLS] This image is classified as full synthetic. It appears entirely artificially generated.",
    Label.TAMPERED: "[CLS] This image is classified as tampered. It has been altered. [SEG] A mask highlighting the tampered region is provided.",
}


@dataclass
class Prediction:
    """The answer about one picture."""

    image: np.ndarray  # uint8 RGB [H, W, 3]
    label: Label | None  # None only with decode="reference" when neither prompt nor answer holds a [CLS]
    probs: dict[str, float]  # class title -> probability; empty when label is None
    text: str
    mask: np.ndarray | None  # bool [H, W] at the original size when judged tampered and a mask was decoded
    seconds: float  # a batch's time is shared out evenly
    ended: bool = True  # False for a text that was cut: too long, or repeating itself

    def save(self, folder: str | Path, name: str) -> dict[str, str | None]:
        """Write `NAME_mask_0.png` (0/255) and `NAME_masked_img_0.jpg`; returns their paths, None when there is no mask."""
        if self.mask is None:
            return {"mask": None, "overlay": None}
        mask = write_picture(Path(folder) / f"{name}_mask_0.png", self.mask)
        return {"mask": str(mask), "overlay": str(write_picture(Path(folder) / f"{name}_masked_img_0.jpg", overlay(self.image, self.mask)))}

    def to_dict(self) -> dict[str, Any]:
        """Label, probabilities, text and the share of tampered pixels (0..1), ready for JSON."""
        area = None if self.mask is None else float(self.mask.mean())
        return {"label": self.label.title if self.label is not None else None, "probs": self.probs, "text": self.text, "area": area}


def choose_device(name: str | None = None) -> str:
    """`name`, or the GPU when there is one."""
    if name and name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device is {name!r} but torch finds no GPU: use --device cpu")
    return name or ("cuda" if torch.cuda.is_available() else "cpu")


class SidaPipeline:
    """Ask a checkpoint about pictures."""

    def __init__(self, model: SIDAForCausalLM, tokenizer: SidaTokenizer, device: str, dtype: torch.dtype) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.device, self.dtype = device, dtype
        self.processor = SidaProcessor(tokenizer, model.config)

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
        return cls(model.to(device).eval(), tokenizer, device, dtype)

    def detect(self, images: Picture | Sequence[Picture], batch_size: int = 8) -> Prediction | list[Prediction]:
        """Class and mask without a written answer: one pass over the prompt, and SAM only where it is tampered. As `__call__`."""
        return self(images, decode="forced", batch_size=batch_size)

    def __call__(
        self,
        images: Picture | Sequence[Picture],
        question: str | None = None,
        *,
        decode: str = "generate",
        batch_size: int = 8,
        max_new_tokens: int = 512,
        on_text: Callable[[str], None] | None = None,
    ) -> Prediction | list[Prediction]:
        """Ask about a path or an RGB array [H, W, 3], or about a list of them, `batch_size` at a time; one gives one answer, a list a list.

        `question` defaults to the one the checkpoint was trained on. `on_text` receives the text so far of one picture's answer, each
        time it grows. FileNotFoundError or ValueError for a picture, question, decode or batch size that does not do.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: expected at least 1")
        if isinstance(images, Picture):
            return self._answer([images], question, decode, max_new_tokens, on_text)[0]
        if on_text is not None:
            raise ValueError(f"on_text with a list of {len(images)} pictures: it follows one answer, ask about one picture at a time")
        batches = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
        return [prediction for batch in batches for prediction in self._answer(batch, question, decode, max_new_tokens, None)]

    def _answer(self, images: Sequence[Picture], text: str | None, decode: str, max_new_tokens: int, on_text: Callable[[str], None] | None) -> list[Prediction]:
        """One batch."""
        start = time.perf_counter()
        rgbs = [image if isinstance(image, np.ndarray) else read_rgb(Path(image)) for image in images]
        questions = [self._question(rgb, text, max_new_tokens, on_text) for rgb in rgbs]
        readings = read_batch(self.model, questions, decode)
        answered = [(reading, *self._verdict(reading), self._mask(reading)) for reading in readings]
        seconds = (time.perf_counter() - start) / len(images)
        ended = [decode == "forced" or reading.answer_ids[-1] in asked.stop_ids for asked, reading in zip(questions, readings, strict=True)]
        return [
            Prediction(rgb, label, probs, self._text(reading, label, decode), mask, seconds, whole)
            for rgb, (reading, label, probs, mask), whole in zip(rgbs, answered, ended, strict=True)
        ]

    def _question(self, rgb: np.ndarray, text: str | None, max_new_tokens: int, on_text: Callable[[str], None] | None) -> Question:
        image_clip, image_sam, resized = self.processor.images(rgb)
        prompt_ids = self.processor.prompt_ids(text or trained_question(self.model.config.stage))
        room = self.model.config.max_position_embeddings - len(prompt_ids)
        stop = (self.tokenizer.eos_id, *([self.tokenizer.id_of(END_TOKEN)] if END_TOKEN in self.tokenizer.added else []))
        return Question(
            prompt_ids=torch.tensor([prompt_ids], device=self.device),
            verdicts=tuple(self.tokenizer.encode(verdict_text(label, "sida"), bos=False) for label in Label),
            images_clip=image_clip[None].to(self.device, self.dtype),
            images_sam=image_sam[None].to(self.device, self.dtype),
            resized_hw=resized,
            original_hw=rgb.shape[:2],
            max_new_tokens=min(max_new_tokens, room),
            stop_ids=stop,
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

    @staticmethod
    def _verdict(reading: Reading) -> tuple[Label | None, dict[str, float]]:
        if reading.cls_logits.isnan().any():
            return None, {}
        probs = reading.cls_logits.float().softmax(dim=-1)
        return Label(int(probs.argmax())), {label.title: float(probs[label]) for label in Label}

    def _text(self, reading: Reading, label: Label | None, decode: str) -> str:
        if decode == "reference" and label is not None and self.model.config.stage == "sida":
            return CANNED[label]
        if decode == "forced":
            return verdict_text(label, "sida")
        return self.tokenizer.decode(reading.answer_ids, skip_special=True).strip()
