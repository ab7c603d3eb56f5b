"""LoRA on the language model, and which parameters a stage trains."""

from __future__ import annotations

from collections.abc import Sequence

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn


def target_regex(targets: Sequence[str]) -> str:
    """Full names of the language model's attention projections; a bare `q_proj` would also hit CLIP's and SAM's."""
    return rf"model\.layers\.\d+\.(self_attn|mlp)\.({'|'.join(targets)})"


def add_lora(model: nn.Module, r: int, alpha: int, dropout: float, targets: Sequence[str]) -> None:
    """Put rank-`r` adapters (scale alpha / r) on `targets` in place; r = 0 leaves the model alone. ValueError if no layer matches."""
    if r == 0:
        return
    if r < 0 or not targets:
        raise ValueError(f"lora_r is {r} and lora_target_modules {list(targets)}: expected r >= 0 and names such as q_proj,v_proj")
    inject_adapter_in_model(LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=target_regex(targets), bias="none"), model)


def merge_lora(model: nn.Module) -> None:
    """Fold every adapter into its weight, W + (alpha / r) B A, and take the adapters away."""
    adapted = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    for name, module in adapted:
        module.merge()
        model.set_submodule(name, module.get_base_layer())


def set_trainable(model: nn.Module, families: Sequence[str]) -> int:
    """Freeze everything but LoRA and the parameters with one of `families` in their dotted name.

    Returns how many numbers train. A family is one part of the name or several in a row, always whole ones: `attention_layer` does
    not catch `post_attention_layernorm`, and `model.layers` not the `layers` of CLIP and SAM.
    """
    count = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "lora_" in name or any(f".{family}." in f".{name}." for family in families)
        count += parameter.numel() if parameter.requires_grad else 0
    return count
