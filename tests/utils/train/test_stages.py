from __future__ import annotations

from utils.train.stages import STAGES


def test_the_table() -> None:
    sida, description = STAGES["sida"], STAGES["description"]
    assert sida.trainable == ("embed_tokens", "mask_decoder", "text_hidden_fcs", "cls_head", "sida_fc1", "attention_layer")
    assert description.trainable == ("lm_head", "mask_decoder", "cls_head")
    assert (sida.ce, sida.cls, sida.mask) == (0.0, 1.0, 1.0)
    assert (description.ce, description.cls, description.mask) == (1.0, 0.5, 0.5)
    assert (sida.model_max_length, sida.lr, sida.validate_after) == (512, 1e-5, (1, 3, 5, 7, 10))
    assert (description.model_max_length, description.lr, description.validate_after) == (1024, 1e-4, (1, 3, 5))


def test_families() -> None:
    sida, description = STAGES["sida"], STAGES["description"]
    assert sida.families(compat=False, mask_decoder=True) == sida.trainable
    assert sida.families(compat=True, mask_decoder=True) == (*sida.trainable, "post_attention_layernorm")
    assert description.families(compat=True, mask_decoder=False) == ("lm_head", "cls_head", "embed_tokens")
    assert sida.families(compat=False, mask_decoder=True, vision=True) == (*sida.trainable, "vision_tower", "mm_projector", "image_encoder")
    assert sida.families(compat=False, mask_decoder=True, language=True) == (*sida.trainable, "model.layers", "model.norm")
