"""A small network on hand-made statistics: what a picture's noise, DCT coefficients and error level tell without depth.

Dimensions: N pictures, G = S / 8 blocks a side, C = STATISTICS channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import dctn
from torch import Tensor, nn

from model.types import Label
from model.vision import RESIDUALS
from utils.data.dataset import decode
from utils.data.records import Record

BLOCK = 8  # of JPEG, pixels
STATISTICS = 64 + 2 * len(RESIDUALS) + 3


def statistics(rgb: np.ndarray) -> np.ndarray:
    """uint8 [S, S, 3] -> float16 [C, G, G]: log magnitudes of each block's DCT, of noise residuals, and the error level of a JPEG of quality 90."""
    gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    side = len(gray) // BLOCK
    blocks = gray[: side * BLOCK, : side * BLOCK].reshape(side, BLOCK, side, BLOCK).transpose(0, 2, 1, 3)
    planes = [np.abs(dctn(blocks, axes=(2, 3), norm="ortho")).reshape(side, side, 64).transpose(2, 0, 1)]
    for kernel in RESIDUALS:
        residual = cv2.filter2D(gray, -1, np.array(kernel, np.float32) / np.abs(kernel).max())
        planes += [_pool(np.abs(residual), side)[None], np.sqrt(_pool(residual**2, side))[None]]
    again = cv2.imdecode(cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, 90])[1], cv2.IMREAD_COLOR)
    planes.append(np.stack([_pool(np.abs(rgb[..., c].astype(np.float32) - again[..., c]), side) for c in range(3)]))
    return np.log1p(np.concatenate(planes)).astype(np.float16)


def _pool(plane: np.ndarray, side: int) -> np.ndarray:
    return plane[: side * BLOCK, : side * BLOCK].reshape(side, BLOCK, side, BLOCK).mean(axis=(1, 3))


class StatisticsNet(nn.Module):
    """About 21 000 weights: two convolutions over block statistics, a tampered-or-not logit per block, three classes from means and maxima."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(STATISTICS)
        self.body = nn.Sequential(nn.Conv2d(STATISTICS, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
        self.where = nn.Conv2d(width, 1, 1)
        self.verdict = nn.Linear(2 * width, len(Label))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, C, G, G] -> class logits [N, 3], block logits [N, G, G]."""
        y = self.body(self.norm(x))
        return self.verdict(torch.cat([y.mean(dim=(2, 3)), y.amax(dim=(2, 3))], dim=1)), self.where(y)[:, 0]


def features(records: Sequence[Record]) -> tuple[Tensor, Tensor, Tensor]:
    """Statistics float16 [N, C, G, G], classes int64 [N], share of each block that is tampered float32 [N, G, G]."""
    planes, masks = [], []
    for record in records:
        rgb, gray = decode(record)
        planes.append(torch.from_numpy(statistics(rgb)))
        mask = np.zeros(rgb.shape[:2], np.float32) if gray is None else (gray > 127).astype(np.float32)
        masks.append(torch.from_numpy(_pool(mask, len(mask) // BLOCK)))
    return torch.stack(planes), torch.tensor([int(record.label) for record in records]), torch.stack(masks)


def fit(records: Sequence[Record], epochs: int = 12, seed: int = 0) -> StatisticsNet:
    """Train on `records`, batches of 32, AdamW with one cosine from 3e-3."""
    torch.manual_seed(seed)
    x, y, masks = features(records)
    net = StatisticsNet()
    steps = epochs * (len(x) // 32)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(32)[: len(x) // 32]:
            logits, where = net(x[rows].float())
            loss = F.cross_entropy(logits, y[rows]) + 3 * F.binary_cross_entropy_with_logits(where, masks[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


@torch.inference_mode()
def predict(net: StatisticsNet, records: Sequence[Record], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Class probabilities [N, 3] and mask logits [N, size, size]."""
    outputs = [net(features([record])[0].float()) for record in records]
    masks = [F.interpolate(where[:, None], (size, size), mode="bilinear", align_corners=False)[0, 0] for _, where in outputs]
    return torch.cat([logits.softmax(dim=-1) for logits, _ in outputs]).numpy(), torch.stack(masks).numpy()
