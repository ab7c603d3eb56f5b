"""One configuration for the whole network, written as the checkpoint's `config.json`.

The file keeps the published checkpoints' form (`model_type: llava`, LLaVA's field names). What they leave out, because
it never changed, defaults to the real sizes: CLIP ViT-L/14 at 224 px and SAM ViT-H at 1024 px.
"""

from __future__ import annotations

from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig

CLIP_VIT_L_14 = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14, "image_size": 224}
CLIP_TINY = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 16, "image_size": 256}
CLIP_DEBUG = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 14, "image_size": 224}
SAM_VIT_H = {"embed_dim": 1280, "depth": 32, "num_heads": 16, "global_attn_indexes": [7, 15, 23, 31]}
SAM_TINY = {"embed_dim": 192, "depth": 2, "num_heads": 3, "global_attn_indexes": [0, 1]}
SAM_DEBUG = {"embed_dim": 64, "depth": 3, "num_heads": 2, "global_attn_indexes": [2]}
STEM = {"width": 64, "depth": 2, "phases": True}  # of the convolutions in front of a small vision transformer

STAGES = ("sida", "description")
CONV_TYPES = ("llava_v1", "llava_llama_2")
SELECT_FEATURES = ("patch", "cls_patch")


class SidaConfig(LlamaConfig):
    """Llama's fields plus the vision tower, SAM and what a checkpoint needs to be used with no flag.

    Raises ValueError for an unknown stage, conversation type or vision feature, an expert that does not fit the vision tower's width, or an image size
    that SAM's patches do not divide.
    """

    model_type = "llava"

    vision_tower: str = "openai/clip-vit-large-patch14"  # folder, hub name, or a folder inside the checkpoint
    mm_hidden_size: int = 1024  # width of the vision tower
    mm_vision_select_layer: int = -2
    mm_vision_select_feature: str = "patch"  # or "cls_patch": the class token as well, in front
    mm_use_im_start_end: bool = True
    out_dim: int = 256  # width of SAM's prompts
    train_mask_decoder: bool = True
    use_cache: bool = False
    pad_token_id: int | None = 0
    clip: dict[str, Any] | None = None  # CLIPVisionConfig fields
    content: dict[str, Any] | None = None  # CLIPVisionConfig fields of a content expert; None: there is none
    noise: dict[str, Any] | None = None  # `channels` and `hidden` of a noise expert (model/noise.py); None: there is none
    sam: dict[str, Any] | None = None  # arguments of model.sam.build_sam
    image_size: int = 1024  # SAM's square input, pixels
    stage: str = "sida"
    conv_type: str = "llava_v1"
    model_max_length: int = 512  # tokens, image patches included
    cls_temperature: float = 1.0  # class logits are divided by it before they become probabilities
    calibrated_on: int = 0  # pictures that it was fitted on; 0: not fitted
    views: int = 1  # looks at a picture, each a quarter turn further, whose logits are averaged (utils/infer/views.py)

    def __post_init__(self, **kwargs: Any) -> None:
        self.clip = self.clip or dict(CLIP_VIT_L_14)
        self.sam = self.sam or dict(SAM_VIT_H)
        kwargs["mm_vision_tower"] = self.vision_tower
        if self.stage not in STAGES:
            raise ValueError(f"stage is {self.stage!r}: expected one of {STAGES}")
        if self.conv_type not in CONV_TYPES:
            raise ValueError(f"conv_type is {self.conv_type!r}: expected one of {CONV_TYPES}")
        if self.mm_vision_select_feature not in SELECT_FEATURES:
            raise ValueError(f"mm_vision_select_feature is {self.mm_vision_select_feature!r}: expected one of {SELECT_FEATURES}")
        if not self.cls_temperature > 0:
            raise ValueError(f"cls_temperature is {self.cls_temperature}: expected a number above 0")
        if self.views not in range(1, 5):
            raise ValueError(f"views is {self.views}: expected 1 (upright) to 4 (each quarter turn)")
        if self.content and self.content["hidden_size"] != self.mm_hidden_size:
            raise ValueError(f"content has a hidden_size of {self.content['hidden_size']}: expected the vision tower's, {self.mm_hidden_size}")
        if self.noise and self.noise["hidden"] > self.mm_hidden_size:
            raise ValueError(f"noise has {self.noise['hidden']} hidden values: expected at most the vision tower's width, {self.mm_hidden_size}")
        if self.image_size % 16:
            raise ValueError(f"image_size is {self.image_size}: expected a multiple of SAM's patch size, 16")
        super().__post_init__(**kwargs)

    @property
    def image_patches(self) -> int:
        """How many tokens stand for one image."""
        return (self.clip["image_size"] // self.clip["patch_size"]) ** 2 + (self.mm_vision_select_feature == "cls_patch")

    def clip_config(self) -> CLIPVisionConfig:
        """The vision tower's own configuration."""
        return CLIPVisionConfig(**self.clip)


def _llama(hidden: int, layers: int, heads: int, ffn: int, vocab: int, eps: float = 1e-6, positions: int = 2048) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "rms_norm_eps": eps,
        "max_position_embeddings": positions,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "debug": {**_llama(64, 2, 4, 128, 0), "mm_hidden_size": 64, "clip": CLIP_DEBUG, "sam": SAM_DEBUG, "image_size": 256},
    "tiny": {
        **_llama(128, 3, 4, 384, 0),
        "mm_hidden_size": 192,
        "mm_vision_select_layer": -1,
        "mm_vision_select_feature": "cls_patch",
        "initializer_range": 0.05,
        "clip": CLIP_TINY | {"stem": STEM},
        "sam": SAM_TINY | {"stem": STEM},
        "image_size": 256,
    },
    "7b": _llama(4096, 32, 32, 11008, 32004),
    "13b": {**_llama(5120, 40, 40, 13824, 32004, eps=1e-5, positions=4096), "conv_type": "llava_llama_2"},
}


def preset(name: str, **overrides: Any) -> SidaConfig:
    """The configuration called `name` in PRESETS; `vocab_size` must be given for `tiny`, whose tokenizer is made on the spot."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: expected one of {sorted(PRESETS)}")
    return SidaConfig(**(PRESETS[name] | overrides))
