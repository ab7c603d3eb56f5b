"""Records to samples: the one place where a file becomes the network's input."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from model.config import SidaConfig
from model.tokens import SidaTokenizer
from model.types import Label, Size
from utils.data import conversation
from utils.data.augment import Augmentation
from utils.data.features import FeatureCache, Features, content_key
from utils.data.records import Record, Sample, Unreadable
from utils.data.sampler import Draw
from utils.data.transforms import clip_input, mask_target, read_gray, read_rgb, resized_size, sam_input

log = logging.getLogger(__name__)


def decode(record: Record) -> tuple[np.ndarray, np.ndarray | None]:
    """uint8 RGB [H, W, 3] and, for a tampered record, its grey mask [H, W].

    Raises FileNotFoundError or ValueError when a file is absent or unreadable, or the mask's size is not the image's.
    """
    rgb = read_rgb(record.image)
    if record.label is not Label.TAMPERED:
        return rgb, None
    return rgb, read_mask(record, rgb.shape[:2])


def read_mask(record: Record, size: Size) -> np.ndarray:
    """The mask of a tampered record whose image is `size`, uint8 [H, W]; errors as `decode`."""
    if record.mask is None:
        raise ValueError(f"{record.image} is labelled tampered but has no mask: give one, or leave the record out")
    gray = read_gray(record.mask)
    if gray.shape != size:
        raise ValueError(f"mask {record.mask} is {gray.shape}, its image {size} (height, width): resize the mask to the image or remove both")
    return gray


class SidaProcessor:
    """Everything between a file and tensors, for one checkpoint.

    `train_text` also supervises the words of the `sida` stage's answers, which the original leaves untrained.
    """

    def __init__(self, tokenizer: SidaTokenizer, config: SidaConfig, train_text: bool = False) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.train_text = train_text

    def images(self, rgb: np.ndarray) -> tuple[Tensor, Tensor, Size]:
        """uint8 [H, W, 3] -> image_clip [3, 224, 224], image_sam [3, S, S] and the size inside its padding."""
        image_sam, resized_hw = sam_input(rgb, self.config.image_size)
        return clip_input(rgb, self.config.clip["image_size"]), image_sam, resized_hw

    def prompt_ids(self, question: str) -> list[int]:
        """Token ids up to where the answer starts. Raises ValueError if they exceed config.model_max_length."""
        return conversation.encode(self.tokenizer, self.config, question)[0]

    def sample(self, record: Record) -> Sample:
        """Read and encode one record; errors as `decode` and `conversation.encode`."""
        return self.assemble(record, *decode(record))

    def assemble(self, record: Record, rgb: np.ndarray, gray: np.ndarray | None) -> Sample:
        """`sample` for a record that `decode` has read."""
        image_clip, image_sam, _ = self.images(rgb)
        return self._sample(record, image_clip, image_sam, gray, rgb.shape[:2])

    def recall(self, record: Record, features: Features) -> Sample:
        """`sample` with what the frozen encoders saw in place of the pixels: [P, D] and [E, g, g], float16; errors as `decode`."""
        gray = read_mask(record, features.original_hw) if record.label is Label.TAMPERED else None
        grid = self.config.image_size // 16
        sam = torch.zeros(1, dtype=torch.float16).expand(self.config.out_dim, grid, grid) if features.sam is None else features.sam
        return self._sample(record, features.clip, sam, gray, features.original_hw)

    def _sample(self, record: Record, image_clip: Tensor, image_sam: Tensor, gray: np.ndarray | None, original_hw: Size) -> Sample:
        resized_hw = resized_size(original_hw, self.config.image_size)
        mask = torch.zeros(1, *resized_hw) if gray is None else mask_target(gray, self.config.image_size)
        ids, labels = self._conversation(record)
        return Sample(
            id=record.id,
            input_ids=torch.tensor(ids),
            labels=torch.tensor(labels),
            image_clip=image_clip,
            image_sam=image_sam,
            mask=mask,
            label=record.label,
            resized_hw=resized_hw,
            original_hw=original_hw,
        )

    def _conversation(self, record: Record) -> tuple[list[int], list[int]]:
        stage = self.config.stage
        answer = conversation.answer(record.label, stage, record.description)
        supervised = bool(record.description) if stage == "description" else self.train_text
        return conversation.encode(self.tokenizer, self.config, conversation.question(stage), answer, supervised)


class SidaDataset(Dataset[Sample | Unreadable]):
    """Samples of `records`.

    A record whose files cannot be used is logged and, with `replace_unreadable`, replaced by the next usable one of its class
    (ValueError when there is none); otherwise an Unreadable comes in its place. `augment` changes the pictures. With `features`, pictures
    are not opened: what is kept there comes in place of their pixels.
    """

    def __init__(
        self,
        records: Sequence[Record],
        processor: SidaProcessor,
        replace_unreadable: bool = True,
        augment: Augmentation | None = None,
        features: FeatureCache | None = None,
    ) -> None:
        if not records:
            raise ValueError("no records: expected at least one")
        self.records = records
        self.processor = processor
        self.replace_unreadable = replace_unreadable
        self.augment = augment
        self.features = features
        self._by_class: dict[Label, list[int]] = {label: [] for label in Label}
        self._rank: list[int] = []  # place of a record within its class
        for i, record in enumerate(records):
            self._rank.append(len(self._by_class[record.label]))
            self._by_class[record.label].append(i)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def labels(self) -> list[int]:
        """Class of each record."""
        return [int(record.label) for record in self.records]

    def __getitem__(self, drawn: Draw | int) -> Sample | Unreadable:
        """The sample of a draw, or of an index: that of its first turn."""
        draw = drawn if isinstance(drawn, Draw) else Draw(drawn, 0)
        i = draw.index
        siblings = self._by_class[self.records[i].label]
        tried: list[str] = []
        for step in range(len(siblings) if self.replace_unreadable else 1):
            item = self._get(siblings[(self._rank[i] + step) % len(siblings)], draw)
            if isinstance(item, Sample):
                item.unreadable = tuple(tried)
                return item
            tried.append(item.path)
        if not self.replace_unreadable:
            return item
        raise ValueError(f"none of the {len(siblings)} {self.records[i].label.title} records can be read; the last: {item.reason}")

    def _get(self, i: int, draw: Draw) -> Sample | Unreadable:
        record = self.records[i]
        try:
            if self.features is not None:
                return self.processor.recall(record, self.features[content_key(record.image)])
            rgb, gray = decode(record)
        except (OSError, ValueError, KeyError) as error:
            log.warning("unreadable %s: %s", record.image, error)
            return Unreadable(str(record.image), str(error))
        if self.augment:
            rgb, gray = self.augment(rgb, gray, draw)
        return self.processor.assemble(record, rgb, gray)
