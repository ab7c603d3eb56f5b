"""SAM with one prompt: an embedding of the sentence instead of points or boxes.

The package's image encoder, prompt encoder and mask decoder are used as they are, so `sam_vit_h_4b8939.pth` and the
published checkpoints load key by key. The original feeds the embedding through a patched prompt encoder; handing it to
the decoder as the only sparse prompt is the same computation. Their attention is computed by torch's fused kernels.

Dimensions: B images, S side of the square input, E = 256 prompt width, n prompts, L = S/4 mask side, C channels of a block on h x w patches.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from functools import partial
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.types import SAM_MEAN, SAM_STD, Size
from model.vision import TraceStem

QUERIES = 256  # positions are added for so many queries at a time; for all 4096 they would be a GB per image of ViT-H


def _import_modeling() -> ModuleType:
    """`segment_anything.modeling` without the package's __init__, which needs torchvision."""
    if "segment_anything" not in sys.modules:
        spec = importlib.util.find_spec("segment_anything")
        if spec is None:
            raise ImportError("the package segment-anything is missing: pip install segment-anything==1.0")
        package = ModuleType("segment_anything")
        package.__path__ = list(spec.submodule_search_locations or [])
        package.__spec__ = importlib.machinery.ModuleSpec("segment_anything", None, is_package=True)
        sys.modules["segment_anything"] = package
    return importlib.import_module("segment_anything.modeling")


def attend_to_image(self: nn.Module, x: Tensor) -> Tensor:
    """Forward of the image encoder's attention, [B, h, w, C] -> the same: softmax(q k / sqrt(d) + q above + q beside) v, fused.

    The last two score relative positions. A kernel that has to give gradients to what is added would store h w x h w scores; there the
    positions are made part of q and k instead: [q, q above, q beside] times [k, its row as one-hot, its column as one-hot].
    """
    batch, height, width, _ = x.shape
    q, k, v = self.qkv(x).reshape(batch, height * width, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind()
    grid = q.unflatten(2, (height, width))
    above = torch.einsum("bnhwd,hkd->bnhwk", grid, self.rel_pos_h[_distances(height, x.device)]).flatten(2, 3)
    beside = torch.einsum("bnhwd,wkd->bnhwk", grid, self.rel_pos_w[_distances(width, x.device)]).flatten(2, 3)
    if q.requires_grad:
        row, column = torch.eye(height).to(k).repeat_interleave(width, dim=0), torch.eye(width).to(k).repeat(height, 1)
        places = torch.cat([row, column], dim=1).expand(*k.shape[:2], -1, -1)
        q, k, padded = torch.cat([q * self.scale, above, beside], dim=-1), torch.cat([k, places], dim=-1), F.pad(v, (0, height + width))
        out = F.scaled_dot_product_attention(q, k, padded, scale=1.0)[..., : v.shape[-1]]
    else:
        blocks = zip(*(tensor.split(QUERIES, dim=2) for tensor in (q, above, beside)), strict=True)
        fused = partial(F.scaled_dot_product_attention, key=k, value=v)
        out = torch.cat([fused(some, attn_mask=(rows[..., None] + columns[..., None, :]).flatten(-2)) for some, rows, columns in blocks], dim=2)
    return self.proj(out.transpose(1, 2).reshape(x.shape))


def _distances(size: int, device: torch.device) -> Tensor:
    """[size, size] rows of a table of relative positions: query minus key, from 0."""
    places = torch.arange(size, device=device)
    return places[:, None] - places + size - 1


def attend(self: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Forward of the mask decoder's attention, fused; [B, queries, E], keys and values [B, keys, E] -> [B, queries, E]."""
    q, k, v = (project(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for project, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v)))
    return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Sam(nn.Module):
    """Image encoder, prompt encoder and mask decoder under SAM's own names."""

    def __init__(self, image_encoder: nn.Module, prompt_encoder: nn.Module, mask_decoder: nn.Module) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder

    def encode(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] normalised pixels -> [B, E, S/16, S/16]; what is such an embedding already stays."""
        return images if images.shape[1] == self.mask_decoder.transformer_dim else self.image_encoder(images)

    def decode(self, embeddings: Tensor, prompts: Tensor) -> Tensor:
        """Prompts [n, E] (n > 0), each with its image's embedding [n, E, S/16, S/16] -> low-resolution logits [n, L, L].

        SAM's decoder takes one image and adds a dense embedding per prompt to it; the images go in through the latter,
        so that prompts of several images are one call.
        """
        low_res, _ = self.mask_decoder(
            image_embeddings=torch.zeros_like(embeddings[:1]),
            image_pe=self._dense_pe(),
            sparse_prompt_embeddings=prompts[:, None],
            dense_prompt_embeddings=embeddings + self.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1),
            multimask_output=False,
        )
        return low_res[:, 0]

    def _dense_pe(self) -> Tensor:
        """[1, E, S/16, S/16] positions of the patches. The package's get_dense_pe() works in fp32 only; same numbers there."""
        encoding = self.prompt_encoder.pe_layer
        matrix = encoding.positional_encoding_gaussian_matrix
        y, x = ((torch.arange(n, device=matrix.device) + 0.5) / n for n in self.prompt_encoder.image_embedding_size)
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        return encoding._pe_encoding(grid.to(matrix.dtype)).permute(2, 0, 1)[None]

    def upscale(self, low_res: Tensor, resized: Size, target: Size) -> Tensor:
        """Low-resolution logits [n, L, L] -> [n, *target]: to SAM's input, padding cut off at `resized`, to `target`."""
        side = self.image_encoder.img_size
        masks = F.interpolate(low_res[:, None].float(), (side, side), mode="bilinear", align_corners=False)
        masks = masks[..., : resized[0], : resized[1]]
        return F.interpolate(masks, target, mode="bilinear", align_corners=False)[:, 0]


def build_sam(
    embed_dim: int,
    depth: int,
    num_heads: int,
    global_attn_indexes: list[int],
    image_size: int = 1024,
    window_size: int = 14,
    out_dim: int = 256,
    stem: dict[str, int] | None = None,
    decoder_neurons: int = 2048,
    multimask: bool = True,
) -> Sam:
    """SAM with a ViT of the given size and random weights; `image_size` in pixels, a multiple of 16; `stem`: `width` and `depth` of a TraceStem.

    `decoder_neurons` are those of each MLP between the mask decoder's attentions. Without `multimask` it lacks what is never asked for: the masks for a click
    that might mean several things, and all but a linear guess at how good a mask is.
    """
    parts = _import_modeling()
    encoder = parts.ImageEncoderViT(
        img_size=image_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=4,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=global_attn_indexes,
        window_size=window_size,
        out_chans=out_dim,
    )
    if stem:
        encoder.patch_embed.proj = TraceStem(**stem, out=embed_dim, mean=SAM_MEAN, std=SAM_STD)
    grid = (image_size // 16, image_size // 16)
    prompt = parts.PromptEncoder(embed_dim=out_dim, image_embedding_size=grid, input_image_size=(image_size, image_size), mask_in_chans=16)
    transformer = parts.TwoWayTransformer(depth=2, embedding_dim=out_dim, mlp_dim=decoder_neurons, num_heads=8)
    more, depth = (3, 3) if multimask else (0, 1)
    decoder = parts.MaskDecoder(num_multimask_outputs=more, transformer=transformer, transformer_dim=out_dim, iou_head_depth=depth, iou_head_hidden_dim=256)
    for module in (*encoder.modules(), *decoder.modules()):
        if isinstance(module, parts.image_encoder.Attention):
            module.forward = MethodType(attend_to_image, module)
        elif isinstance(module, parts.transformer.Attention):
            module.forward = MethodType(attend, module)
    return Sam(encoder, prompt, decoder)


def read_sam_file(path: str | Path) -> dict[str, Any]:
    """State dict of a SAM `.pth` file (tensors only; nothing in it is executed)."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no SAM weights at {path}: give --vision_pretrained the path of sam_vit_h_4b8939.pth")
    return torch.load(path, map_location="cpu", weights_only=True)
