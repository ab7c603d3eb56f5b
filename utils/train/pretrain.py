"""What their own pre-training was to CLIP and SAM: a small base's encoders learn where pictures were tampered with, patch by patch.

    python -m utils.train.pretrain --version runs/tiny-base --dataset_dir data/SID_Mini --steps 4000

Linear probes: the vision tower's patches and its class token tell real, full synthetic and tampered apart, SAM's patches tampered or not. The probes
are thrown away, the encoders written back into the base. From random weights, a mask's answer per patch teaches far sooner than a verdict alone.

Dimensions: B batch, P patches, S side of SAM's input, D and E widths of the tower and of SAM's embedding.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from model.checkpoint import load_for_training, write_encoders
from model.sida import SIDAForCausalLM
from model.types import Batch, Label
from utils.data.augment import turning
from utils.data.collate import collate
from utils.data.dataset import SidaDataset, SidaProcessor
from utils.data.sampler import BatchStream
from utils.data.sid_set import read_split
from utils.train.signals import ignore_signals

log = logging.getLogger(__name__)

TAMPERED_WEIGHT = 4.0  # of a tampered patch: about one in twenty is


class Probes(nn.Module):
    """A base's two encoders with linear probes."""

    def __init__(self, model: SIDAForCausalLM) -> None:
        super().__init__()
        self.tower, self.sam = model.model.vision_tower, model.model.visual_model.image_encoder
        self.layer = model.config.mm_vision_select_layer
        width = self.tower.config.hidden_size
        self.classes = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(Label)))
        self.verdict = nn.Linear(width, len(Label))
        self.tampered = nn.Conv2d(model.config.out_dim, 1, 1)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the tower's class token and patches, and binary cross-entropy of SAM's patches."""
        seen = self.tower(batch.images_clip, output_hidden_states=True)
        logits = self.classes(seen.hidden_states[self.layer][:, 1:]).float()
        side = math.isqrt(logits.shape[1])
        where = self.tampered(self.sam(batch.images_sam)).float()[:, 0]
        weights = torch.tensor([1.0, 1.0, TAMPERED_WEIGHT])
        classes = patch_classes(patch_share(batch, side), batch.cls_labels)
        patches = -(classes * logits.log_softmax(dim=-1) * weights).sum(dim=-1).mean()
        picture = F.cross_entropy(self.verdict(seen.pooler_output).float(), batch.cls_labels)
        sam = F.binary_cross_entropy_with_logits(where, patch_share(batch, where.shape[-1]), pos_weight=weights[2])
        return picture + patches, sam


def patch_share(batch: Batch, side: int) -> Tensor:
    """Share of each patch that is tampered, float [B, side, side]."""
    size = batch.images_sam.shape[-1]
    whole = torch.zeros(len(batch), size, size)
    for i, mask in enumerate(batch.masks):
        if len(mask):
            whole[i, : mask.shape[-2], : mask.shape[-1]] = mask[0]
    return F.adaptive_avg_pool2d(whole[:, None], side)[:, 0]


def patch_classes(share: Tensor, labels: Tensor) -> Tensor:
    """Tampered shares [B, side, side] and labels [B] -> class probabilities [B, side * side, 3]; a tampered picture's other patches are real."""
    share = share.flatten(1)
    synthetic = (labels == Label.FULL_SYNTHETIC)[:, None].float().expand_as(share)
    return torch.stack([1 - share - synthetic, synthetic, share], dim=-1)


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200) -> float:
    """Linear warm-up, then half a cosine down to 1 % of `peak`."""
    return peak * min((step + 1) / min(warmup, steps), 0.505 + 0.495 * math.cos(math.pi * step / steps))


def pretrain(probes: Probes, loader: DataLoader, steps: int, lr: float, bf16: bool) -> list[float]:
    """Train in place for `steps` batches; returns the sum of both losses of each step."""
    optimizer = torch.optim.AdamW(probes.parameters(), lr, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    losses: list[float] = []
    bar = tqdm(total=steps, desc="pretrain", unit="step", disable=not sys.stderr.isatty())
    for step, (batch, _) in zip(range(steps), loader, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, lr)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            tower, sam = probes(batch)
        (tower + sam).backward()
        nn.utils.clip_grad_norm_(probes.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(tower.item() + sam.item())
        bar.update()
        bar.set_postfix(tower=f"{tower.item():.3f}", sam=f"{sam.item():.3f}")
        if (step + 1) % 100 == 0:
            log.info("step %d of %d: mean loss of the last 100 %.3f", step + 1, steps, sum(losses[-100:]) / 100)
    return losses


def main(argv: Sequence[str] | None = None) -> int:
    """Pre-train a base's encoders from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", type=Path, required=True, help="base folder, changed in place (utils.train.scratch makes one)")
    parser.add_argument("--dataset_dir", required=True, help="its train split is used")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch_size", type=int, default=24)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(args.seed)
    model, tokenizer = load_for_training(args.version, "sida")
    dataset = SidaDataset(read_split(args.dataset_dir, "train"), SidaProcessor(tokenizer, model.config), augment=turning(args.seed))
    stream = BatchStream(dataset.labels, args.batch_size, seed=args.seed, mixing="mixed")
    loader = DataLoader(dataset, batch_sampler=stream, num_workers=args.workers, collate_fn=collate, worker_init_fn=ignore_signals)
    pretrain(Probes(model).train(), loader, args.steps, args.lr, args.precision == "bf16")
    write_encoders(model, args.version)
    return 0


if __name__ == "__main__":
    sys.exit(main())
