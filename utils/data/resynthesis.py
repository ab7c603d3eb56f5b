"""Painting a picture again with a super-resolution GAN: same content, none of the camera's traces.

Dimensions: h x w the small picture, s the net's factor.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor


class Upscaler:
    """A residual dense network (Zhang et al. 2018, arXiv:1802.08797) trained as ESRGAN's generator, read from a safetensors file.

    Names and sizes are those of npm's @upscalerjs/esrgan-*: F_m1 and F_0, then D blocks of one convolution each, global fusion, upscaling.
    """

    def __init__(self, path: str | Path) -> None:
        self.name = Path(path).stem
        self.weights: dict[str, Tensor] = {name: tensor.float() for name, tensor in load_file(path).items()}
        self.blocks = sum(name.startswith("LFF_") and name.endswith("weight") for name in self.weights)
        self.scale = int((self.weights["UPN3.bias"].numel() // 3) ** 0.5)

    def _conv(self, name: str, x: Tensor) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return F.conv2d(x, weight, self.weights[f"{name}.bias"], padding=weight.shape[-1] // 2)

    @torch.inference_mode()
    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """uint8 [h, w, 3] -> uint8 [s h, s w, 3]."""
        x = torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float() / 255
        first = self._conv("F_m1", x)
        local, outputs = self._conv("F_0", first), []
        for block in range(1, self.blocks + 1):
            grown = torch.cat([local, self._conv(f"F_{block}_1", local).relu()], dim=1)
            local = local + self._conv(f"LFF_{block}", grown)
            outputs.append(local)
        fused = first + self._conv("GFF_2", self._conv("GFF_1", torch.cat(outputs, dim=1)))
        wide = self._conv("UPN3", self._conv("UPN2", self._conv("UPN1", fused).relu()).relu())
        painted = self._conv("SR", F.interpolate(wide, scale_factor=self.scale, mode="nearest"))
        return (painted[0].permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).numpy()

    def repaint(self, rgb: np.ndarray, shrink: Image.Resampling) -> np.ndarray:
        """uint8 [H, W, 3] shrunk `s` times with the filter `shrink` and painted again at its size."""
        height, width = rgb.shape[:2]
        small = Image.fromarray(rgb).resize((-(-width // self.scale), -(-height // self.scale)), shrink)
        return self(np.asarray(small))[:height, :width]
