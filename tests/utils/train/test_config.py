"""Flags: the original's names and defaults, switching off, refusals."""

from __future__ import annotations

import re
from dataclasses import asdict

import pytest

from utils.train.config import TrainConfig, parse

ORIGINAL = {  # argparse defaults of the original's train_SIDA.py, run and dumped
    "local_rank": 0,
    "version": "liuhaotian/llava-llama-2-13b-chat-lightning-preview",
    "vis_save_path": "./vis_output",
    "precision": "fp16",
    "image_size": 1024,
    "model_max_length": 512,
    "lora_r": 8,
    "vision_tower": "openai/clip-vit-large-patch14",
    "load_in_8bit": False,
    "load_in_4bit": False,
    "val_dataset": "val",
    "dataset_dir": "./dataset",
    "log_base_dir": "./runs",
    "exp_name": "sida",
    "epochs": 10,
    "steps_per_epoch": 500,
    "batch_size": 2,
    "grad_accumulation_steps": 10,
    "val_batch_size": 1,
    "workers": 4,
    "lr": 1e-05,
    "num_classes": 3,
    "use_stage1_cls": True,
    "ce_loss_weight": 1.0,
    "dice_loss_weight": 1.0,
    "bce_loss_weight": 1.0,
    "cls_loss_weight": 1.0,
    "mask_loss_weight": 1.0,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "lora_target_modules": "q_proj,v_proj",
    "explanatory": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "num_classes_per_sample": 3,
    "exclude_val": False,
    "no_eval": False,
    "eval_only": False,
    "vision_pretrained": "PATH_TO_SAM_ViT-H",
    "out_dim": 256,
    "resume": "",
    "print_freq": 1,
    "start_epoch": 0,
    "gradient_checkpointing": True,
    "train_mask_decoder": True,
    "use_mm_start_end": True,
    "auto_resume": True,
    "conv_type": "llava_v1",
}
ORIGINAL_DESCRIPTION = ORIGINAL | {"model_max_length": 1024, "lr": 1e-4, "cls_loss_weight": 0.5, "mask_loss_weight": 0.5}
CHECKPOINTS_OWN = {"image_size", "vision_tower", "conv_type"}  # None here: the published checkpoints say, or imply, the original's values


@pytest.mark.parametrize(("stage", "original"), [("sida", ORIGINAL), ("description", ORIGINAL_DESCRIPTION)])
def test_defaults_are_the_originals(stage: str, original: dict) -> None:
    ours = asdict(parse(["--stage", stage]))
    expected = dict.fromkeys(CHECKPOINTS_OWN, None)
    if stage == "sida":
        expected["ce_loss_weight"] = 0.0  # the original's first stage never uses its value
    assert {name: ours[name] for name in original} == original | expected


@pytest.mark.parametrize("argv", [["--vision-tower", "x"], ["--vision_tower", "x"], ["--vision-tower=x"]])
def test_dashes_and_underscores(argv: list[str]) -> None:
    assert parse(argv).vision_tower == "x"


@pytest.mark.parametrize("argv", [["--local_rank=1"], ["--local-rank=1"], ["--local_rank", "1"]])
def test_launchers_flag(argv: list[str]) -> None:
    assert parse(argv).local_rank == 1


@pytest.mark.parametrize("name", ["gradient_checkpointing", "auto_resume", "train_mask_decoder", "use_mm_start_end"])
def test_switching_off(name: str) -> None:
    assert getattr(parse([f"--{name}"]), name) is True
    for argv in ([f"--no_{name}"], [f"--no-{name.replace('_', '-')}"], [f"--{name}", "false"], [f"--{name}=False"]):
        assert getattr(parse(argv), name) is False


def test_bare_flags() -> None:
    cfg = parse(["--no_eval", "--eval_only", "--strict", "--train_text", "--offload_optimizer", "--train_vision", "--augment", "--compile"])
    assert all((cfg.compile, cfg.train_vision, cfg.augment, cfg.no_eval, cfg.eval_only, cfg.strict, cfg.train_text, cfg.offload_optimizer))


def test_the_readmes_command() -> None:
    paths = ["--version=/a", "--dataset_dir=/b", "--vision_pretrained=/c", "--val_dataset=/d", "--exp_name=e"]
    cfg = parse([*paths, "--batch_size=2", "--epochs=10", "--steps_per_epoch=1000", "--lr=0.0001"])
    assert (cfg.lr, cfg.total_steps, cfg.sam_weights, cfg.validation_dir, str(cfg.run_dir)) == (1e-4, 10000, "/c", "/d", "runs/e")


def test_what_not_given_means() -> None:
    cfg = parse(["--dataset_dir", "d"])
    assert cfg.sam_weights is None
    assert cfg.validation_dir == "d"


@pytest.mark.parametrize(
    ("argv", "weight"),
    [
        (["--ce_loss_weight", "2"], 0.0),
        (["--train_text"], 1.0),
        (["--train_text", "--ce_loss_weight", "2"], 2.0),
        (["--stage", "description"], 1.0),
        (["--stage", "description", "--ce_loss_weight", "0"], 0.0),
    ],
)
def test_language_weight(argv: list[str], weight: float) -> None:
    assert parse(argv).ce_loss_weight == weight


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--exclude_val"], "--exclude_val is True: only False"),
        (["--num_classes", "2"], "--num_classes is 2: only 3"),
        (["--use_stage1_cls", "false"], "--use_stage1_cls is False: only True"),
        (["--explanatory", "0.5"], "--explanatory is 0.5: only 0.1"),
        (["--num_classes_per_sample", "1"], "--num_classes_per_sample is 1: only 3"),
        (["--load_in_8bit"], "unquantised"),
        (["--load_in_4bit"], "unquantised"),
        (["--batch_size", "0"], "--batch_size is 0: expected at least 1"),
        (["--steps_per_epoch", "-1"], "--steps_per_epoch is -1: expected at least 0"),
        (["--lr", "nan"], "--lr is nan"),
        (["--lora_dropout", "1"], "--lora_dropout is 1.0: expected 0 <= lora_dropout < 1"),
        (["--beta2", "-0.1"], "--beta2 is -0.1"),
        (["--turn", "--worn", "1"], "--worn is 1.0: expected 0 <= worn < 1"),
        (["--augment", "--worn", "0.3"], "--worn is 0.3: --augment has chances of its own"),
        (["--cache_features", "kept", "--worn", "0.3"], "--cache_features with --worn: features are kept only of encoders and pictures that stay as they are"),
        (["--start_epoch", "10"], "nothing is left"),
    ],
)
def test_refusals(argv: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse(argv)


@pytest.mark.parametrize("argv", [["--nonsense", "1"], ["--precision", "int8"], ["--batch", "2"], ["--no_gradient_checkpointing", "false"]])
def test_usage_errors(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        parse(argv)
    assert error.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_only_sida_stage_repeats_reference() -> None:
    assert TrainConfig(compat="reference").reference
    assert not TrainConfig().reference
