"""The flags of training. Names and defaults are the original's; what it ignored now works or is refused with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from utils.train.stages import STAGES, Stage

NO_SAM = "PATH_TO_SAM_ViT-H"  # the original's placeholder default

AT_LEAST: dict[str, float] = {
    **dict.fromkeys(("batch_size", "grad_accumulation_steps", "val_batch_size", "epochs", "print_freq", "keep_last", "out_dim", "model_max_length"), 1),
    **dict.fromkeys(("steps_per_epoch", "save_steps", "warmup_steps", "workers", "start_epoch", "early_stop", "lora_r", "lr", "seed"), 0),
    **dict.fromkeys(("ce_loss_weight", "cls_loss_weight", "mask_loss_weight", "bce_loss_weight", "dice_loss_weight", "lora_alpha"), 0),
}
FRACTIONS = ("beta1", "beta2", "lora_dropout", "worn")  # 0 <= x < 1
UNUSED = "the original reads this flag nowhere, so another value would change nothing"
QUANTISED = "training embeddings and heads needs unquantised weights; load a finished checkpoint in 4 or 8 bits with chat.py"
FIXED: dict[str, tuple[Any, str]] = {
    "load_in_8bit": (False, QUANTISED),
    "load_in_4bit": (False, QUANTISED),
    "exclude_val": (False, UNUSED),
    "num_classes": (3, "the verdict is real, full synthetic or tampered"),
    "use_stage1_cls": (True, "the class head is part of the network in both stages"),
    "explanatory": (0.1, UNUSED),
    "num_classes_per_sample": (3, UNUSED),
}


def _flag(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class TrainConfig:
    """One training or evaluation run. Raises ValueError for a value that is out of range or refused.

    Flags that depend on the stage are None until given; __post_init__ fills them in, so a constructed config has no such None.
    """

    # where from, where to
    stage: Literal["sida", "description"] = _flag("sida", "sida: verdicts and masks from a LISA checkpoint; description: explanations from a SIDA checkpoint")
    version: str = _flag("liuhaotian/llava-llama-2-13b-chat-lightning-preview", "folder of the checkpoint to start from (a finished SIDA with --eval_only)")
    vision_pretrained: str = _flag(NO_SAM, "SAM ViT-H weights; needed if --version has none")
    vision_tower: str | None = _flag(None, "CLIP folder or hub name; None: the checkpoint's, openai/clip-vit-large-patch14")
    dataset_dir: str = _flag("./dataset", "data set: {train,validation}/{real,full_synthetic,tampered,masks}, or see utils/data/sources.py")
    val_dataset: str = _flag("val", "data set whose validation split is used instead of --dataset_dir's")
    log_base_dir: str = _flag("./runs", "parent of the run's folder")
    exp_name: str = _flag("sida", "name of the run's folder")
    vis_save_path: str = _flag("./vis_output", "where validation writes mask pictures")
    # network
    precision: Literal["fp32", "bf16", "fp16"] = _flag("fp16", "fp16 needs a GPU")
    image_size: int | None = _flag(None, "side of SAM's input, pixels; None: the checkpoint's, 1024")
    model_max_length: int | None = _flag(None, "tokens, image patches included; None: 512, description 1024")
    out_dim: int = _flag(256, "width of SAM's prompts")
    conv_type: Literal["llava_v1", "llava_llama_2"] | None = _flag(None, "conversation template; None: the checkpoint's, llava_v1")
    use_mm_start_end: bool = _flag(True, "put <im_start> and <im_end> around the image")
    lora_r: int = _flag(8, "rank of the adapters; 0: none, all layers of the language model train")
    lora_alpha: int = _flag(16, "adapters are scaled by lora_alpha / lora_r")
    lora_dropout: float = _flag(0.05, "dropout in front of the adapters")
    lora_target_modules: str = _flag("q_proj,v_proj", "projections of the language model that get adapters")
    train_mask_decoder: bool = _flag(True, "train SAM's mask decoder")
    train_vision: bool = _flag(False, "also train CLIP, its projection and SAM's image encoder")
    gradient_checkpointing: bool = _flag(True, "recompute activations: less memory, about a third slower")
    compile: bool = _flag(False, "torch.compile the language model's layers, CLIP's and SAM's; the first steps take minutes")
    # optimisation
    epochs: int = _flag(10, "an epoch is --steps_per_epoch optimizer steps")
    steps_per_epoch: int = _flag(500, "optimizer steps, 0 = one pass over the data")
    batch_size: int = _flag(2, "samples per process and micro batch")
    grad_accumulation_steps: int = _flag(10, "micro batches per optimizer step")
    batch_mixing: Literal["homogeneous", "mixed"] = _flag("homogeneous", "one class per batch, or all")
    turn: bool = _flag(False, "turn training pictures by quarters and mirror them at random, which leaves JPEG's blocks whole")
    augment: bool = _flag(False, "flip, crop, resize, add noise to and compress training pictures at random")
    worn: float = _flag(0.0, "chance of another JPEG or WebP or two, half of it each of resizing and noise before")
    cache_features: str = _flag("", "folder to keep what frozen CLIP and SAM see of each picture; filled before the first step")
    lr: float | None = _flag(None, "peak learning rate; None: 1e-5, description 1e-4")
    warmup_steps: int = _flag(100, "optimizer steps of linear warm-up")
    beta1: float = _flag(0.9, "of AdamW")
    beta2: float = _flag(0.95, "of AdamW")
    ce_loss_weight: float | None = _flag(None, "language loss; None: 1; stage sida without --train_text: always 0")
    cls_loss_weight: float | None = _flag(None, "verdict; None: 1, description 0.5")
    mask_loss_weight: float | None = _flag(None, "mask = bce and dice; None: 1, description 0.5")
    bce_loss_weight: float = _flag(1.0, "share of bce in mask")
    dice_loss_weight: float = _flag(1.0, "share of dice in mask")
    train_text: bool = _flag(False, "stage sida: also train the words of the answer, and lm_head with them")
    compat: Literal["none", "reference"] = _flag("none", "reference: repeat the original's accidents, see docs/faithfulness.md")
    seed: int = _flag(42, "of everything random")
    # process
    workers: int = _flag(4, "data loading processes per rank")
    strict: bool = _flag(False, "refuse a data set with missing masks instead of skipping")
    print_freq: int = _flag(1, "optimizer steps between progress and TensorBoard updates")
    save_steps: int = _flag(0, "optimizer steps between checkpoints, 0 = each epoch")
    keep_last: int = _flag(1, "periodic checkpoints kept")
    resume: str = _flag("", "checkpoint folder to continue from, e.g. runs/NAME/ckpt_last")
    auto_resume: bool = _flag(True, "continue from the run's own ckpt_last if there is one")
    start_epoch: int = _flag(0, "epochs to skip when nothing is resumed")
    no_eval: bool = _flag(False, "never validate")
    eval_only: bool = _flag(False, "validate --version (or --resume) and stop")
    val_batch_size: int = _flag(1, "samples per process in validation")
    early_stop: int = _flag(0, "stop after so many validations without a gain (accuracy; description: language loss), 0 = never")
    zero_stage: Literal[0, 1, 2, 3] = _flag(2, "DeepSpeed ZeRO; zero_to_fp32.py needs 2 or 3")
    offload_optimizer: bool = _flag(False, "keep optimizer states in CPU memory")
    deepspeed_config: str = _flag("", "JSON file that replaces the built-in DeepSpeed configuration")
    device: Literal["auto", "cuda", "cpu"] = _flag("auto", "auto: cuda if there is one")
    local_rank: int = _flag(0, "set by the launcher")
    # flags of the original that have one possible value
    load_in_8bit: bool = _flag(False, "refused")
    load_in_4bit: bool = _flag(False, "refused")
    exclude_val: bool = _flag(False, "refused")
    num_classes: int = _flag(3, "only 3")
    use_stage1_cls: bool = _flag(True, "only true")
    explanatory: float = _flag(0.1, "only 0.1")
    num_classes_per_sample: int = _flag(3, "only 3")

    def __post_init__(self) -> None:
        _refuse(self)
        stage = self.stage_defaults
        supervised = self.stage == "description" or self.train_text
        self.ce_loss_weight = (1.0 if self.ce_loss_weight is None else self.ce_loss_weight) if supervised else stage.ce
        self.cls_loss_weight = stage.cls if self.cls_loss_weight is None else self.cls_loss_weight
        self.mask_loss_weight = stage.mask if self.mask_loss_weight is None else self.mask_loss_weight
        self.model_max_length = self.model_max_length or stage.model_max_length
        self.lr = stage.lr if self.lr is None else self.lr

    @property
    def stage_defaults(self) -> Stage:
        """This stage's row of STAGES."""
        return STAGES[self.stage]

    @property
    def run_dir(self) -> Path:
        """Where the run's log, checkpoints and arguments go."""
        return Path(self.log_base_dir) / self.exp_name

    @property
    def pictures_dir(self) -> Path:
        """Parent of the validations' mask pictures."""
        return Path(self.vis_save_path) / self.exp_name

    @property
    def reference(self) -> bool:
        """Whether the original's accidents are repeated."""
        return self.compat == "reference"

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run; needs `steps_per_epoch` > 0."""
        return self.epochs * self.steps_per_epoch

    @property
    def validation_dir(self) -> str:
        """The data set that validation reads."""
        return self.dataset_dir if self.val_dataset == "val" else self.val_dataset

    @property
    def sam_weights(self) -> str | None:
        """`vision_pretrained`, None when it was not given."""
        return None if self.vision_pretrained == NO_SAM else self.vision_pretrained


def _refuse(cfg: TrainConfig) -> None:
    for name, (only, reason) in FIXED.items():
        if getattr(cfg, name) != only:
            raise ValueError(f"--{name} is {getattr(cfg, name)}: only {only} is possible, because {reason}. Leave the flag out.")
    for name, least in AT_LEAST.items():
        value = getattr(cfg, name)
        if value is not None and not value >= least:
            raise ValueError(f"--{name} is {value}: expected at least {least}")
    for name in FRACTIONS:
        if not 0 <= getattr(cfg, name) < 1:
            raise ValueError(f"--{name} is {getattr(cfg, name)}: expected 0 <= {name} < 1")
    for flag in ("train_vision", "turn", "worn", "augment"):
        if cfg.cache_features and getattr(cfg, flag):
            raise ValueError(f"--cache_features with --{flag}: features are kept only of encoders and pictures that stay as they are. Leave one of them out.")
    if cfg.worn and cfg.augment:
        raise ValueError(f"--worn is {cfg.worn}: --augment has chances of its own. Leave one of them out.")
    if cfg.start_epoch >= cfg.epochs:
        raise ValueError(f"--start_epoch is {cfg.start_epoch} with --epochs {cfg.epochs}: nothing is left to train")


def parse(argv: Sequence[str] | None = None) -> TrainConfig:
    """Command line to config; exits with usage for an unknown flag. `--no_x` and `--x false` switch off, `-` and `_` are the same."""
    from transformers.hf_argparser import HfArgumentParser

    parser = HfArgumentParser(TrainConfig, description="Train SIDA; start it with `deepspeed`, `torchrun` or `python`.", allow_abbrev=False)
    return TrainConfig(**vars(parser.parse_args(argv)))
