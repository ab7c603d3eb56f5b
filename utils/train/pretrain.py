"""What their own pre-training was to CLIP and SAM: a small base's encoders learn where pictures were tampered with, patch by patch.

    python -m utils.train.pretrain --version runs/tiny-base --dataset_dir data/SID_Mini --stem_steps 2000 --steps 600

With --stem_steps first their stems, one for both, because they are small. Then both encoders whole. Probes tell real, full
synthetic and tampered apart, tampered by the kinds that the set's descriptions name; they are thrown away, the encoders written back into the
base. From random weights, a mask's answer per patch teaches far sooner than a verdict alone.

Dimensions: B batch, P patches, C classes of a patch, S side of SAM's input, D and E widths of the tower and of SAM's embedding.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from model.checkpoint import load_for_training, write_encoders
from model.sida import SIDAForCausalLM
from model.types import Batch, Label
from model.vision import TraceStem
from utils.data.augment import mild
from utils.data.collate import collate
from utils.data.dataset import SidaDataset, SidaProcessor
from utils.data.explanation import parse
from utils.data.records import Record
from utils.data.sampler import BatchStream
from utils.data.sid_set import read_split
from utils.train.signals import ignore_signals

log = logging.getLogger(__name__)

MAX_KINDS = 16  # more types than that are free wording
TAMPERED_WEIGHT = 4.0  # of a tampered patch: about one in twenty is
VERDICT_WIDTH = 64


class PatchClasses:
    """Real, full synthetic, and each kind of tampering that the descriptions of `records` name: one kind when they name none, or more than MAX_KINDS."""

    def __init__(self, records: Sequence[Record]) -> None:
        said = {record.id: parse(record.description or "").type for record in records if record.label is Label.TAMPERED}
        if (types := len(set(said.values()))) > MAX_KINDS:
            log.warning("%d different types in the descriptions (at most %d can be told apart): all are taken for one kind", types, MAX_KINDS)
            said = dict.fromkeys(said, "")
        self.kinds = sorted(set(said.values()))
        self._kind_of: Mapping[str, int] = {name: self.kinds.index(kind) for name, kind in said.items()}

    def __len__(self) -> int:
        return 2 + len(self.kinds)

    def of(self, batch: Batch, side: int) -> Tensor:
        """Class probabilities of side * side patches [B, P, C]; a tampered picture's other patches are real."""
        index = [2 + self._kind_of[name] if label == Label.TAMPERED else int(label) for name, label in zip(batch.ids, batch.cls_labels, strict=True)]
        share = patch_share(batch, side).flatten(1)
        share[batch.cls_labels == Label.FULL_SYNTHETIC] = 1
        found = share[..., None] * F.one_hot(torch.tensor(index), len(self))[:, None]
        found[..., Label.REAL] += 1 - share
        return found

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Logits of patches [B, P, C] -> cross-entropy, a tampered patch counted TAMPERED_WEIGHT times."""
        weights = torch.tensor([1.0, 1.0] + [TAMPERED_WEIGHT] * len(self.kinds))
        return -(self.of(batch, math.isqrt(logits.shape[1])) * logits.float().log_softmax(dim=-1) * weights).sum(dim=-1).mean()


class StemProbes(nn.Module):
    """SAM's stem with probes of its patches, and of their mean and largest values for the picture."""

    def __init__(self, model: SIDAForCausalLM, patches: PatchClasses) -> None:
        super().__init__()
        self.patches = patches
        self.stem = model.model.visual_model.image_encoder.patch_embed.proj
        width = model.config.sam["embed_dim"]
        self.norm = nn.GroupNorm(1, width)
        self.classes = nn.Conv2d(width, len(patches), 1)
        self.verdict = nn.Sequential(nn.Linear(2 * width, VERDICT_WIDTH), nn.ReLU(), nn.Linear(VERDICT_WIDTH, len(Label)))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the picture, and of its patches."""
        seen = self.norm(self.stem(batch.images_sam))
        verdict = self.verdict(torch.cat([seen.mean(dim=(2, 3)), seen.amax(dim=(2, 3))], dim=1))
        return F.cross_entropy(verdict.float(), batch.cls_labels), self.patches.loss(self.classes(F.relu(seen)).flatten(2).mT, batch)


class Probes(nn.Module):
    """A base's two encoders with linear probes: the tower's patches and class token tell the classes apart, SAM's patches tampered or not."""

    def __init__(self, model: SIDAForCausalLM, patches: PatchClasses) -> None:
        super().__init__()
        self.patches = patches
        self.tower, self.sam = model.model.vision_tower, model.model.visual_model.image_encoder
        self.layer = model.config.mm_vision_select_layer
        width = self.tower.config.hidden_size
        self.classes = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(patches)))
        self.verdict = nn.Linear(width, len(Label))
        self.tampered = nn.Conv2d(model.config.out_dim, 1, 1)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the tower's class token and patches, and binary cross-entropy of SAM's patches."""
        seen = self.tower(batch.images_clip, output_hidden_states=True)
        where = self.tampered(self.sam(batch.images_sam)).float()[:, 0]
        patches = self.patches.loss(self.classes(seen.hidden_states[self.layer][:, 1:]), batch)
        picture = F.cross_entropy(self.verdict(seen.pooler_output).float(), batch.cls_labels)
        sam = F.binary_cross_entropy_with_logits(where, patch_share(batch, where.shape[-1]), pos_weight=torch.tensor(TAMPERED_WEIGHT))
        return picture + patches, sam


def patch_share(batch: Batch, side: int) -> Tensor:
    """Share of each patch that is tampered, float [B, side, side]."""
    size = batch.images_sam.shape[-1]
    whole = torch.zeros(len(batch), size, size)
    for i, mask in enumerate(batch.masks):
        if len(mask):
            whole[i, : mask.shape[-2], : mask.shape[-1]] = mask[0]
    return F.adaptive_avg_pool2d(whole[:, None], side)[:, 0]


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200) -> float:
    """Linear warm-up, then half a cosine down to 1 % of `peak`."""
    return peak * min((step + 1) / min(warmup, steps), 0.505 + 0.495 * math.cos(math.pi * step / steps))


def pretrain(probes: nn.Module, batches: Iterator[tuple[Batch, Any]], steps: int, lr: float, bf16: bool) -> list[float]:
    """Train in place for `steps` batches; returns the sum of the losses of each step."""
    optimizer = torch.optim.AdamW(probes.parameters(), lr, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    losses: list[float] = []
    bar = tqdm(total=steps, desc="pretrain", unit="step", disable=not sys.stderr.isatty())
    for step, (batch, _) in zip(range(steps), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, lr)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            each = probes(batch)
        sum(each).backward()
        nn.utils.clip_grad_norm_(probes.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(sum(loss.item() for loss in each))
        bar.update()
        bar.set_postfix(losses=" ".join(f"{loss.item():.3f}" for loss in each))
        if (step + 1) % 100 == 0:
            log.info("step %d of %d: mean loss of the last 100 %.3f", step + 1, steps, sum(losses[-100:]) / 100)
    return losses


def pretrain_stems(model: SIDAForCausalLM, patches: PatchClasses, batches: Iterator[tuple[Batch, Any]], steps: int, lr: float, bf16: bool) -> None:
    """Train SAM's stem, give the tower's what it learned: both see the same grey levels. ValueError when there are no two alike."""
    stems = [model.model.visual_model.image_encoder.patch_embed.proj, model.model.vision_tower.embeddings.patch_embedding]
    shapes = [{name: tuple(tensor.shape) for name, tensor in stem.state_dict().items()} for stem in stems]
    if not all(isinstance(stem, TraceStem) for stem in stems) or shapes[0] != shapes[1]:
        raise ValueError("--stem_steps needs a base whose vision tower and SAM have stems of the same size (`stem` in its config.json): use --stem_steps 0")
    pretrain(StemProbes(model, patches).train(), batches, steps, lr, bf16)
    stems[1].load_state_dict(stems[0].state_dict())


def main(argv: Sequence[str] | None = None) -> int:
    """Pre-train a base's encoders from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", type=Path, required=True, help="base folder, changed in place (utils.train.scratch makes one)")
    parser.add_argument("--dataset_dir", required=True, help="its train split is used")
    parser.add_argument("--stem_steps", type=int, default=0, help="of the stems alone, before")
    parser.add_argument("--steps", type=int, default=4000, help="of the encoders whole")
    parser.add_argument("--batch_size", type=int, default=24)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(args.seed)
    model, tokenizer = load_for_training(args.version, "sida")
    records = read_split(args.dataset_dir, "train", descriptions=True)
    patches = PatchClasses(records)
    dataset = SidaDataset(records, SidaProcessor(tokenizer, model.config), augment=mild(args.seed))
    stream = BatchStream(dataset.labels, args.batch_size, seed=args.seed, mixing="mixed")
    loader = DataLoader(dataset, batch_sampler=stream, num_workers=args.workers, collate_fn=collate, worker_init_fn=ignore_signals)
    batches = iter(loader)
    if args.stem_steps:
        pretrain_stems(model, patches, batches, args.stem_steps, args.lr, args.precision == "bf16")
    pretrain(Probes(model, patches).train(), batches, args.steps, args.lr, args.precision == "bf16")
    write_encoders(model, args.version)
    return 0


if __name__ == "__main__":
    sys.exit(main())
