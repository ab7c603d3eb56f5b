"""The two stages of training, one table. Flags override its values."""

from __future__ import annotations

from dataclasses import dataclass

VISION = ("vision_tower", "mm_projector", "image_encoder")  # CLIP, its projection, SAM's encoder
LANGUAGE = ("model.layers", "model.norm")


@dataclass(frozen=True)
class Stage:
    """What distinguishes one stage from the other; flags left out take their values from here."""

    name: str
    trainable: tuple[str, ...]  # families of parameters trained besides LoRA
    compat_trainable: tuple[str, ...]  # what the original trains on top, by accident
    ce: float  # loss weights
    cls: float
    mask: float
    model_max_length: int  # tokens, image patches included
    lr: float
    validate_after: tuple[int, ...]  # epochs, counted from 1; the last epoch is always validated

    def families(self, *, compat: bool, mask_decoder: bool, vision: bool = False, language: bool = False) -> tuple[str, ...]:
        """The parameter families to train; `compat` adds the original's accidents, `mask_decoder` False takes SAM's decoder out.

        `vision` adds CLIP, its projection and SAM's image encoder, `language` all layers of the language model.
        """
        names = self.trainable + (self.compat_trainable if compat else ()) + VISION * vision + LANGUAGE * language
        return tuple(name for name in names if mask_decoder or name != "mask_decoder")


STAGES = {
    "sida": Stage(
        name="sida",
        trainable=("embed_tokens", "mask_decoder", "text_hidden_fcs", "cls_head", "sida_fc1", "attention_layer"),
        compat_trainable=("post_attention_layernorm",),
        ce=0.0,
        cls=1.0,
        mask=1.0,
        model_max_length=512,
        lr=1e-5,
        validate_after=(1, 3, 5, 7, 10),
    ),
    "description": Stage(
        name="description",
        trainable=("lm_head", "mask_decoder", "cls_head"),
        compat_trainable=("embed_tokens",),
        ce=1.0,
        cls=0.5,
        mask=0.5,
        model_max_length=1024,
        lr=1e-4,
        validate_after=(1, 3, 5),
    ),
}
