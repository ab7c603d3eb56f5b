"""SAM by the unforked package, prompted by an embedding."""

from __future__ import annotations

import copy
import resource

import pytest
import torch

from model.config import SAM_DEBUG, SAM_VIT_H
from model.sam import _import_modeling, attend, attend_to_image, build_sam, read_sam_file


def test_prompts_of_several_images_are_independent() -> None:
    sam = build_sam(**SAM_DEBUG, image_size=64).eval()
    with torch.no_grad():
        embeddings = sam.encode(torch.randn(2, 3, 64, 64))[[0, 1, 1]]
        prompts = torch.randn(3, 256)
        together = sam.decode(embeddings, prompts)
        alone = torch.cat([sam.decode(embedding[None], prompt[None]) for embedding, prompt in zip(embeddings, prompts, strict=True)])
    assert together.shape == (3, 16, 16)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_positions_are_the_packages_own() -> None:
    sam = build_sam(**SAM_DEBUG, image_size=64)
    assert torch.equal(sam._dense_pe(), sam.prompt_encoder.get_dense_pe())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    sam = build_sam(**SAM_DEBUG, image_size=64).eval()
    images, prompts = torch.randn(1, 3, 64, 64), torch.randn(1, 256)
    with torch.no_grad():
        exact = sam.decode(sam.encode(images), prompts)
        half = sam.to(dtype).decode(sam.encode(images.to(dtype)), prompts.to(dtype)).float()
    assert half.isfinite().all()
    torch.testing.assert_close(half, exact, atol=0.1 * exact.abs().max().item(), rtol=0)


def test_upscale_cuts_the_padding_off() -> None:
    sam = build_sam(**SAM_DEBUG, image_size=64)
    low_res = torch.full((1, 16, 16), -1.0)
    low_res[:, :8] = 1.0  # the upper half of the square; the picture below fills just that
    assert (sam.upscale(low_res, (30, 64), (300, 640)) > 0).all()
    assert sam.upscale(low_res, (30, 64), (300, 640)).shape == (1, 300, 640)


def test_missing_file() -> None:
    with pytest.raises(FileNotFoundError, match="--vision_pretrained"):
        read_sam_file("nowhere.pth")


@pytest.mark.slow
def test_vit_h_at_1024_px() -> None:
    """The real size, fp32, once: 0.64 G parameters, the published number of them, about 6 GB."""
    sam = build_sam(**SAM_VIT_H).eval()
    assert sum(p.numel() for p in sam.image_encoder.parameters()) == 637_026_048
    with torch.inference_mode():
        embedding = sam.encode(torch.randn(1, 3, 1024, 1024))
        masks = sam.upscale(sam.decode(embedding, torch.randn(1, 256)), (768, 1024), (480, 640))
    assert embedding.shape == (1, 256, 64, 64)
    assert masks.shape == (1, 480, 640)
    assert masks.isfinite().all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 12e6, "kB"


@pytest.mark.parametrize("size", [4, 5, 20])
@pytest.mark.parametrize("trained", [False, True])
def test_attention_is_the_packages_own(size: int, trained: bool) -> None:
    """Values, and gradients of everything, on windows and on more patches than positions are added for at a time."""
    torch.manual_seed(0)
    attention = _import_modeling().image_encoder.Attention(24, num_heads=2, use_rel_pos=True, input_size=(size, size + 1))
    for weight in attention.parameters():
        torch.nn.init.normal_(weight, std=0.5).requires_grad_(trained)
    x = torch.randn(3, size, size + 1, 24)
    want, got = attention(x), attend_to_image(attention, x)
    torch.testing.assert_close(got, want, atol=1e-5 * want.abs().max().item(), rtol=0)
    if trained:
        pull = torch.randn_like(want)
        both = [torch.autograd.grad((out * pull).sum(), [*attention.parameters()]) for out in (want, got)]
        for a, b in zip(*both, strict=True):
            torch.testing.assert_close(b, a, atol=1e-4 * both[0][0].abs().max().item(), rtol=0)


def test_decoder_attention_is_the_packages_own() -> None:
    torch.manual_seed(0)
    attention = _import_modeling().transformer.Attention(32, 4, downsample_rate=2)
    q, k, v = torch.randn(2, 3, 32), torch.randn(2, 7, 32), torch.randn(2, 7, 32)
    torch.testing.assert_close(attend(attention, q, k, v), attention(q, k, v), atol=1e-6, rtol=1e-5)


def test_every_attention_of_sam_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    sam = build_sam(**SAM_DEBUG, image_size=64).eval()
    parts = _import_modeling()
    monkeypatch.setattr(parts.image_encoder.Attention, "forward", None)
    monkeypatch.setattr(parts.transformer.Attention, "forward", None)
    with torch.no_grad():
        assert copy.deepcopy(sam).decode(sam.encode(torch.randn(1, 3, 64, 64)), torch.randn(1, 256)).shape == (1, 16, 16)
