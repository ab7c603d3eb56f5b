"""A second opinion: what a small CLIP makes of a picture's content, beside what the language model makes of its traces.

Verdicts are multiplied, as of experts that know different things (Hinton 2002, product of experts): their class logits are added. The expert is trained
apart. A language model that looks at content while it learns knows the train split's pictures by heart, and has no use for it.

Dimensions: B images, T tokens (the class token first), D width, S side of the pixels given.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

STATES = 3  # of a picture: the class token's, its patches' mean, their standard deviation


class ContentExpert(nn.Module):
    """A CLIP for pictures of its own size and a linear class head. What it sees and what it says are apart, for the former is kept where patches are."""

    rows = STATES  # of features

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.tower = CLIPVisionModel(config)
        self.head = nn.Linear(STATES * config.hidden_size, 3)

    @property
    def eyes(self) -> nn.Module:
        """What `see` depends on."""
        return self.tower

    def see(self, images_clip: Tensor) -> Tensor:
        """[B, 3, S, S] CLIP-normalised pixels of any size -> [B, STATES, D]."""
        side = self.tower.config.image_size
        if images_clip.shape[-1] != side:
            images_clip = F.interpolate(images_clip.float(), (side, side), mode="bicubic", antialias=True, align_corners=False).to(images_clip.dtype)
        states = self.tower.post_layernorm(self.tower(images_clip).last_hidden_state)
        patches = states[:, 1:]
        return torch.stack([states[:, 0], patches.mean(dim=1), patches.std(dim=1)], dim=1)

    def forward(self, seen: Tensor) -> Tensor:
        """[B, STATES, D] -> [B, 3] class logits."""
        return self.head(seen.flatten(1).to(self.head.weight.dtype))
