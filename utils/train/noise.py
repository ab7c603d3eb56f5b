"""A noise expert (model/noise.py) learns where pictures were tampered with, patch by patch, and what they are.

    python -m utils.train.noise --dataset_dir data/SID_384 --out runs/small-noise
    python -m utils.train.noise --dataset_dir data/SID_384 --start runs/small-noise --out runs/small-noise-2

From nothing, or from where another course left it; first from crops, which a convolutional network learns from as well and twice as fast, then from whole
pictures. A crop that shows nothing of what was tampered with is a real one.

Dimensions: B batch, S side of the pixels given, C channels of a patch of 8 x 8 pixels.
"""

from __future__ import annotations

import argparse
import logging
import sys
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.data import DataLoader, Dataset

from model.noise import CHANNELS, NoiseExpert
from model.types import Label
from model.vision import BLOCK
from utils.data.augment import mild
from utils.data.dataset import decode
from utils.data.records import Record
from utils.data.sampler import BatchStream, Draw
from utils.data.sid_set import read_split
from utils.train.pretrain import TAMPERED_WEIGHT, pretrain
from utils.train.signals import ignore_signals

log = logging.getLogger(__name__)

WEIGHTS = "noise.safetensors"
SHOWN = 0.005  # least share of a crop that must be tampered for it to be called so
DROPOUT = 0.2
CLASSES = torch.tensor([1.0, 1.0, TAMPERED_WEIGHT])  # weight of a patch


class Patches(NamedTuple):
    """Pictures, and what each of their patches is."""

    levels: Tensor  # uint8 [B, 3, S, S]
    tampered: Tensor  # float [B, S/8, S/8], share of each patch
    labels: Tensor  # int64 [B]


class Turned(Dataset[Patches]):
    """Pictures of `side` pixels, turned at random, worn with that chance, of which `crop` pixels a side are taken, by whole blocks of JPEG; None: all."""

    def __init__(self, records: Sequence[Record], side: int, crop: int | None, worn: float, seed: int) -> None:
        self.records, self.side, self.crop, self.seed = records, side, crop, seed
        self.turn = mild(seed, worn=worn)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, draw: Draw) -> Patches:
        record = self.records[draw.index]
        rgb, gray = self.turn(*decode(record), draw)
        if rgb.shape[:2] != (self.side, self.side):
            raise ValueError(f"{record.image} is {rgb.shape[:2]}: expected {(self.side, self.side)}, as the first; resizing would undo what noise tells")
        tampered = np.zeros((self.side, self.side), np.float32) if gray is None else (gray > 127).astype(np.float32)
        if self.crop is not None:
            rng = np.random.default_rng(zlib.crc32(f"{self.seed},{draw.turn},{draw.index}".encode()))
            window = tuple(slice(start, start + self.crop) for start in BLOCK * rng.integers((self.side - self.crop) // BLOCK + 1, size=2))
            rgb, tampered = rgb[window], tampered[window]
        hidden = record.label is Label.TAMPERED and tampered.mean() < SHOWN
        levels = torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))
        share = F.avg_pool2d(torch.from_numpy(tampered)[None], BLOCK)[0]
        return Patches(levels, share, torch.tensor(Label.REAL if hidden else record.label))


class NoiseLesson(nn.Module):
    """An expert with probes of its patches: of what each is like, and of how it differs from its picture."""

    def __init__(self, expert: NoiseExpert, width: int) -> None:
        super().__init__()
        self.expert = expert
        self.here = nn.Conv2d(width, len(Label), 1)
        self.odd = nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, len(Label), 1))

    def forward(self, batch: Patches) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the picture, and of its patches."""
        patches = self.expert.patches(batch.levels)
        verdict = self.expert.head(F.dropout(self.expert.picture(patches), DROPOUT))
        logits = self.here(patches) + self.odd(patches - patches.mean(dim=(2, 3), keepdim=True))
        whole = (batch.labels == Label.FULL_SYNTHETIC).float().view(-1, 1, 1)
        wanted = torch.stack([(1 - batch.tampered) * (1 - whole), whole.expand_as(batch.tampered), batch.tampered], dim=1)
        where = -(wanted * logits.float().log_softmax(dim=1) * CLASSES.view(-1, 1, 1)).sum(dim=1).mean()
        return F.cross_entropy(verdict.float(), batch.labels), where


@torch.no_grad()
def fold(trained: NoiseExpert, plain: NoiseExpert) -> NoiseExpert:
    """`plain`, which has no norms, made to do what `trained`, which has, does once it no longer learns."""
    ours, theirs = dict(plain.named_modules()), dict(trained.named_modules())
    for name, module in theirs.items():
        if isinstance(module, nn.Conv2d):
            norm = theirs[f"{name.removesuffix('.0')}.1"]
            weight, bias = fuse_conv_bn_weights(module.weight, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
            ours[name].weight.copy_(weight)
            ours[name].bias.copy_(bias)
        elif isinstance(module, nn.Linear):
            ours[name].load_state_dict(module.state_dict())
    return plain.eval()


@torch.no_grad()
def unfold(plain: NoiseExpert, learning: NoiseExpert, levels: Tensor) -> NoiseExpert:
    """`learning`, which has norms, made to do what `plain`, which has none, does; a norm starts with what it would find in `levels` [B, 3, S, S]."""
    ours, theirs = dict(learning.named_modules()), dict(plain.named_modules())

    def start(conv: nn.Conv2d, _: object, found: Tensor) -> None:
        variance, mean = torch.var_mean(found.float(), dim=(0, 2, 3))
        norm = norms[conv]
        norm.running_mean.copy_(mean - conv.bias)
        norm.running_var.copy_(variance)
        norm.bias.copy_(mean)
        norm.weight.copy_((variance + norm.eps).sqrt())

    norms, handles = {}, []
    for name, module in theirs.items():
        if isinstance(module, nn.Conv2d):
            ours[name].weight.copy_(module.weight)
            norms[module] = ours[f"{name.removesuffix('.0')}.1"]
            handles.append(module.register_forward_hook(start))
        elif isinstance(module, nn.Linear):
            ours[name].load_state_dict(module.state_dict())
    plain.patches(levels)
    for handle in handles:
        handle.remove()
    return learning


def load_noise(folder: str | Path, width: int) -> NoiseExpert:
    """The expert that `main` wrote to `folder`, for features of `width`. OSError when there is none."""
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected what `python -m utils.train.noise --out {folder}` writes")
    weights = load_file(path)
    channels = [weights[f"body.{i}.0.weight"].shape[0] for i in (0, 2, 4, 7)]
    expert = NoiseExpert(width, channels, len(weights["head.weight"][0]))
    expert.load_state_dict(weights)
    return expert.eval()


def stream(records: Sequence[Record], side: int, crop: int | None, worn: float, batch_size: int, workers: int, seed: int) -> Iterator[tuple[Patches, None]]:
    """Endless batches."""
    batches = BatchStream([record.label for record in records], batch_size, seed=seed, mixing="mixed")
    for batch in DataLoader(Turned(records, side, crop, worn, seed), batch_sampler=batches, num_workers=workers, worker_init_fn=ignore_signals):
        yield Patches(*batch), None


def train(
    dataset_dir: str,
    out: str | Path,
    *,
    start: str | None,
    crop: int,
    crop_steps: int,
    steps: int,
    worn: float,
    batch_size: int,
    lr: float,
    bf16: bool,
    workers: int,
    seed: int,
) -> list[float]:
    """Write an expert to `out`; returns the sum of the losses of each step. It goes on from the one in `start`, if given.

    ValueError for a crop that is not whole blocks of the pictures or a chance that is none, OSError where `start` has no expert.
    """
    torch.manual_seed(seed)
    records = read_split(dataset_dir, "train")
    side = len(decode(records[0])[0])
    if crop % BLOCK or side % BLOCK or not 0 < crop <= side:
        raise ValueError(f"--crop is {crop}, pictures have {side} pixels a side: expected multiples of {BLOCK}, the crop at most the picture")
    if not 0 <= worn <= 1:
        raise ValueError(f"--worn is {worn}: expected a chance, 0 to 1")
    before = None if start is None else load_noise(start, 0)
    Path(out).mkdir(parents=True, exist_ok=True)  # or it fails before the work, not after
    cropped = islice(stream(records, side, crop, worn, batch_size, workers, seed), crop_steps)
    batches = chain(cropped, stream(records, side, None, worn, batch_size, workers, seed + 1))
    expert = NoiseExpert(0, norm=True)
    if before is not None:
        first = next(batches)
        expert, batches = unfold(before, expert, first[0].levels), chain([first], batches)
    lesson = NoiseLesson(expert, CHANNELS[-1]).to(memory_format=torch.channels_last).train()
    losses = pretrain(lesson, batches, crop_steps + steps, lr, bf16)
    save_file({name: tensor.contiguous() for name, tensor in fold(lesson.expert, NoiseExpert(0)).state_dict().items()}, Path(out) / WEIGHTS)
    return losses


def main(argv: Sequence[str] | None = None) -> int:
    """Train a noise expert from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", required=True, help="its train split is used; square pictures of one size")
    parser.add_argument("--out", required=True, help="folder to write, as utils.train.experts reads it")
    parser.add_argument("--start", help="folder of an expert to go on from (default: from nothing)")
    parser.add_argument("--crop", type=int, default=256, help="side of the crops, pixels")
    parser.add_argument("--crop_steps", type=int, default=5600)
    parser.add_argument("--steps", type=int, default=1600, help="on whole pictures, after that")
    parser.add_argument("--worn", type=float, default=0.0, help="chance of another JPEG or WebP or two, half of it each of resizing and noise before")
    parser.add_argument("--batch_size", type=int, default=24)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = vars(parser.parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        train(args.pop("dataset_dir"), args.pop("out"), bf16=args.pop("precision") == "bf16", **args)
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
