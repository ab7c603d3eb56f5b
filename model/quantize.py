"""8- and 4-bit language model for inference through bitsandbytes. Heads, SAM, projector and vision tower stay as they are."""

from __future__ import annotations

import torch
from torch import nn


def quantize(model: nn.Module, bits: int, compute: torch.dtype) -> None:
    """Replace the linear layers of Llama's blocks in place by LLM.int8() (bits = 8) or NF4 with double quantisation (bits = 4).

    The weights are packed when the model is next moved to its device. ImportError when bitsandbytes is missing.
    """
    if bits not in (4, 8):
        raise ValueError(f"bits is {bits}: expected 4 or 8")
    try:
        import bitsandbytes as bnb
    except ImportError as error:
        raise ImportError(f"{bits}-bit loading needs bitsandbytes: pip install bitsandbytes") from error

    def packed(linear: nn.Linear) -> nn.Module:
        size = (linear.in_features, linear.out_features)
        if bits == 8:
            new = bnb.nn.Linear8bitLt(*size, bias=False, has_fp16_weights=False)
            new.weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
            return new
        new = bnb.nn.Linear4bit(*size, bias=False, compute_dtype=compute, compress_statistics=True, quant_type="nf4")
        new.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4", module=new)
        return new

    for name, module in list(model.model.layers.named_modules()):
        if isinstance(module, nn.Linear):
            model.model.layers.set_submodule(name, packed(module))
