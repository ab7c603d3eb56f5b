"""SIDA: a LLaVA-style language model whose [CLS] and [SEG] states drive a class head and SAM's mask decoder.

Dimensions: B batch, T tokens (image patches included), P patches of one image, H hidden size, V vocabulary,
S side of SAM's input, E = 256 prompt width, n [SEG] tokens of one image, h x w a mask's size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaForCausalLM, LlamaModel
from transformers.cache_utils import Cache

from model.config import SidaConfig
from model.content import ContentExpert
from model.heads import class_head, fuse, seg_projection
from model.losses import LossWeights, language_loss, mask_losses
from model.noise import NoiseExpert
from model.sam import build_sam
from model.tokens import IGNORE_INDEX, IMAGE_TOKEN_ID, positions_before
from model.types import SidaLosses, SidaOutput, Size
from model.vision import VisionTower


class SidaModel(LlamaModel):
    """Llama with the vision tower, SAM and the heads beside it, under the published checkpoints' names."""

    config_class = SidaConfig

    def __init__(self, config: SidaConfig) -> None:
        super().__init__(config)
        hidden, width = config.hidden_size, config.out_dim
        self.vision_tower = VisionTower(config.clip_config())
        self.content = ContentExpert(CLIPVisionConfig(**config.content)) if config.content else None
        self.noise = NoiseExpert(config.mm_hidden_size, **config.noise) if config.noise else None
        self.mm_projector = nn.Linear(config.mm_hidden_size, hidden)
        self.visual_model = build_sam(**config.sam, image_size=config.image_size, out_dim=width)
        self.text_hidden_fcs = seg_projection(hidden, width)
        self.cls_head = class_head(hidden)
        self.sida_fc1 = nn.Linear(3, width)
        self.attention_layer = nn.MultiheadAttention(embed_dim=width, num_heads=8, batch_first=True)

    @property
    def experts(self) -> dict[str, ContentExpert | NoiseExpert]:
        """Those that there are, by name, in the order of their rows behind a picture's patches."""
        return {name: expert for name, expert in (("content", self.content), ("noise", self.noise)) if expert is not None}


class SIDAForCausalLM(LlamaForCausalLM):
    """The whole network. Without `images_sam` a forward is a plain multimodal language model's, so `generate` works."""

    config_class = SidaConfig

    def __init__(self, config: SidaConfig, cls_id: int, seg_id: int) -> None:
        super().__init__(config)
        self.model = SidaModel(config)
        self.cls_id, self.seg_id = cls_id, seg_id
        self.loss_weights = LossWeights()
        self.lockstep = False  # several ranks train together: each must call the same modules

    def encode_images(self, images_clip: Tensor) -> Tensor:
        """[B, 3, 224, 224] CLIP-normalised pixels, or what `see` made of them -> [B, P, H] projected patches."""
        features = self.see(images_clip)[:, : self.config.image_patches]
        return self.model.mm_projector(features.to(self.model.mm_projector.weight.dtype))

    @property
    def heard(self) -> list[ContentExpert | NoiseExpert]:
        """The experts, or none while the network trains: surer of train pictures than of any other, they would leave the class head little to learn."""
        return [] if self.training else list(self.model.experts.values())

    def see(self, images_clip: Tensor) -> Tensor:
        """[B, 3, 224, 224] CLIP-normalised pixels -> features [B, P, D]: the tower's patches of the selected layer, the class token first if selected.

        Behind them comes what `heard` experts see, if there are any. What is features already stays.
        """
        if images_clip.ndim == 3:
            return images_clip
        states = self.model.vision_tower(images_clip, output_hidden_states=True).hidden_states
        features = states[self.config.mm_vision_select_layer]
        features = features[:, 1:] if self.config.mm_vision_select_feature == "patch" else features
        return torch.cat([features, *(expert.see(images_clip) for expert in self.heard)], dim=1)

    def embed(self, input_ids: Tensor, images_clip: Tensor | None = None) -> Tensor:
        """[B, T] ids -> [B, T, H]; the placeholders become the images' patches, in order."""
        placeholders = input_ids == IMAGE_TOKEN_ID
        embeds = self.model.embed_tokens(input_ids.clamp(min=0))
        if images_clip is None or not placeholders.any():
            return embeds
        features = self.encode_images(images_clip).to(embeds.dtype)
        if int(placeholders.sum()) != features.shape[0] * features.shape[1]:
            raise ValueError(
                f"{int(placeholders.sum())} image placeholders for {features.shape[0]} images of {features.shape[1]} patches: "
                "each image needs its <image> in the prompt, expanded to one placeholder per patch"
            )
        return embeds.masked_scatter(placeholders[..., None], features)

    def class_logits(self, states: Tensor, features: Tensor) -> Tensor:
        """[B, H] states that predict [CLS], [B, P, D] what `see` made of the same pictures -> [B, 3]."""
        logits, told = self.model.cls_head[0](states), features[:, self.config.image_patches :]
        for expert in self.heard:
            logits = logits + expert(told[:, : expert.rows])
            told = told[:, expert.rows :]
        return logits

    def classify(self, hidden: Tensor, input_ids: Tensor, features: Tensor) -> Tensor:
        """[B, T, H] -> [B, 3]: read at the state that predicts the row's last [CLS], the answer's; `features` as `class_logits`."""
        before = positions_before(input_ids, self.cls_id)
        if not before.any(dim=1).all():
            missing = (~before.any(dim=1)).nonzero().flatten().tolist()
            raise ValueError(f"rows {missing} of the batch have no [CLS] to classify at: was the answer cut off? Raise --model_max_length.")
        last = before.long().cumsum(dim=1).argmax(dim=1)
        return self.class_logits(hidden[torch.arange(len(hidden), device=hidden.device), last], features)

    def seg_states(self, hidden: Tensor, input_ids: Tensor) -> list[Tensor]:
        """[B, T, H] -> B x [n, H]: the states that predict each row's [SEG] tokens."""
        before = positions_before(input_ids, self.seg_id)
        return list(hidden[before].split(before.sum(dim=1).tolist()))

    def segment(self, states: list[Tensor], cls_logits: Tensor, images_sam: Tensor, resized: list[Size], target: list[Size]) -> list[Tensor]:
        """B x [n, H] states, [B, 3] class logits, [B, 3, S, S] images -> B x [n, *target] mask logits. SAM sees only images with n > 0."""
        masks = [cls_logits.new_zeros((0, *size), dtype=torch.float32) for size in target]
        wanted = [i for i, state in enumerate(states) if len(state)]
        if not wanted:
            return masks
        embeddings = self.model.visual_model.encode(images_sam[wanted])
        low_res = self.low_res_masks(embeddings, [states[i] for i in wanted], cls_logits[wanted])
        for i, logits in zip(wanted, low_res, strict=True):
            masks[i] = self.model.visual_model.upscale(logits, resized[i], target[i])
        return masks

    def low_res_masks(self, embeddings: Tensor, states: list[Tensor], cls_logits: Tensor) -> list[Tensor]:
        """[B, E, S/16, S/16] SAM embeddings, B x [n, H] states (n > 0), [B, 3] -> B x [n, S/4, S/4]. Each module is called once."""
        net, counts = self.model, [len(state) for state in states]
        segs = net.text_hidden_fcs[0](torch.cat(states)).split(counts)
        prompts = torch.cat(fuse(net.attention_layer, net.sida_fc1(cls_logits), list(segs)))
        image_of = torch.arange(len(counts), device=prompts.device).repeat_interleave(torch.tensor(counts, device=prompts.device))
        return list(net.visual_model.decode(embeddings[image_of], prompts).split(counts))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        images_clip: Tensor | None = None,
        images_sam: Tensor | None = None,
        cls_labels: Tensor | None = None,
        masks: list[Tensor] | None = None,
        resized_hw: list[Size] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> SidaOutput:
        """Language model alone, or (with `images_sam`) classes, masks at `resized_hw`, and losses when `cls_labels` is given."""
        features = images_clip if images_sam is None else self.see(images_clip)
        embeds = self.embed(input_ids, features) if inputs_embeds is None else inputs_embeds
        out = self.model(inputs_embeds=embeds, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs)
        hidden = out.last_hidden_state
        if images_sam is None:
            logits = self.lm_head(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
            return SidaOutput(logits=logits, past_key_values=out.past_key_values, hidden=hidden)
        cls_logits = self.classify(hidden, input_ids, features)
        mask_logits = self.segment(self.seg_states(hidden, input_ids), cls_logits, images_sam, resized_hw, resized_hw)
        losses = None
        if cls_labels is not None:
            losses = self._losses(hidden, labels, cls_logits, cls_labels, mask_logits, masks, images_sam)
        return SidaOutput(hidden=hidden, cls_logits=cls_logits, mask_logits=mask_logits, losses=losses)

    def _losses(
        self,
        hidden: Tensor,
        labels: Tensor | None,
        cls_logits: Tensor,
        cls_labels: Tensor,
        mask_logits: list[Tensor],
        masks: list[Tensor],
        images_sam: Tensor,
    ) -> SidaLosses:
        bce, dice = mask_losses(mask_logits, masks)
        if self.lockstep and not any(len(mask) for mask in mask_logits):
            bce = bce + self._idle_mask_branch(hidden, cls_logits, images_sam)
        ce = torch.zeros((), device=hidden.device)
        if self.loss_weights.ce and labels is not None:
            ce = self._language_loss(hidden, labels)
        return self.loss_weights.combine(ce, F.cross_entropy(cls_logits.float(), cls_labels), bce, dice)

    def _language_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """The vocabulary is projected only where the next token is supervised."""
        targets = labels[:, 1:]
        supervised = targets != IGNORE_INDEX
        return language_loss(self.lm_head(hidden[:, :-1][supervised]), targets[supervised])

    def _idle_mask_branch(self, hidden: Tensor, cls_logits: Tensor, images_sam: Tensor) -> Tensor:
        """0 with zero gradients, through the same modules as a mask.

        DeepSpeed adds gradients up across ranks in the order in which backward reaches them (ZeRO-2) and gathers weights in the order
        in which forward asks for them (ZeRO-3). A rank that leaves these modules out mixes up gradients, or waits for ever.
        """
        sam = self.model.visual_model
        # A trained encoder has gradients to add up, and ZeRO-3 gathers its weights. parameters(): ZeRO-3 takes a look at `.pos_embed` for a use of it.
        if any(hasattr(weight, "ds_id") or (weight.requires_grad and torch.is_grad_enabled()) for weight in sam.image_encoder.parameters()):
            embedding = sam.encode(images_sam[:1])
        else:
            embedding = images_sam.new_zeros(1, self.config.out_dim, *sam.prompt_encoder.image_embedding_size)
        return self.low_res_masks(embedding, [hidden[0, -1:]], cls_logits[:1])[0].sum() * 0.0
