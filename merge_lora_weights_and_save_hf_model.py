"""Fold a training's LoRA weights into its base and write an ordinary checkpoint folder.

    python merge_lora_weights_and_save_hf_model.py --version ck/LISA-7B-v1 --weight runs/SIDA-7B --save_path ck/SIDA-7B

--weight takes the run's folder, a DeepSpeed folder, a pytorch_model.bin made by zero_to_fp32.py, or a folder of shards.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

TOLERANCE = {"fp32": 1e-4, "bf16": 0.1, "fp16": 0.02}  # of the largest logit: what rounding the weights may change


def build_parser() -> argparse.ArgumentParser:
    """The original's flags; what the run's args.json knows need not be given."""
    parser = argparse.ArgumentParser(description="merge LoRA weights", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--version", required=True, help="the folder the training started from (LISA, or SIDA for the description stage)")
    add("--weight", required=True, help="run folder, DeepSpeed folder, .bin, .safetensors or folder of shards")
    add("--save_path", required=True, help="folder to write")
    add("--precision", choices=list(TOLERANCE), default="bf16", help="of the saved weights; merging itself is fp32")
    add("--stage", choices=["sida", "description"], help="default: the run's, else told by the vocabulary's size")
    add("--lora_r", type=int, help="default: read from the weights")
    add("--lora_alpha", type=int, help="default: the run's, else 16")
    add("--vision-tower", "--vision_tower", dest="vision_tower", help="default: the base's")
    add("--train_vision", action="store_true", help="the vision tower was trained, so save it; default: the run's")
    add("--conv_type", choices=["llava_v1", "llava_llama_2"], help="default: the run's")
    add("--image_size", type=int, help="default: the run's")
    add("--model_max_length", type=int, help="default: the run's")
    add("--check", action=argparse.BooleanOptionalAction, default=True, help="reload what was written and compare its outputs")
    idle = ("vis_save_path", "lora_dropout", "lora_target_modules", "local-rank", "train_mask_decoder", "use_mm_start_end", "out_dim", "vision_pretrained")
    for flag in (f"--{name}" for name in idle):
        add(flag, nargs="?", const="true", help="accepted for old command lines; no effect on merging")
    return parser


def run_args(weight: Path) -> dict[str, Any]:
    """`args.json` of the training, found beside the weights or in the folders above them; {} if they came alone."""
    for folder in (weight, *weight.parents[:2]):
        if (folder / "args.json").is_file():
            return json.loads((folder / "args.json").read_text())
    return {}


def load_trained(args: argparse.Namespace, known: dict[str, Any]) -> tuple[Any, Any]:
    """The network as it was trained, adapters still apart, in fp32."""
    import torch

    from model.checkpoint import STAGE_TOKENS, TOWER_FOLDER, allocate, fill, load_tower, read_config, read_trained, tower_fields
    from model.lora import add_lora
    from model.tokens import SidaTokenizer

    state = dict(read_trained(args.weight))
    tokenizer = SidaTokenizer.from_pretrained(args.version)
    rows = state["model.embed_tokens.weight"].shape[0] if "model.embed_tokens.weight" in state else 0
    base = SidaTokenizer.from_pretrained(args.version)
    base.add_tokens(STAGE_TOKENS["sida"])
    stage = args.stage or known.get("stage") or ("description" if rows > len(base) else "sida")
    tokenizer.add_tokens(STAGE_TOKENS["sida"] + (STAGE_TOKENS["description"] if stage == "description" else ()))
    chosen = {name: getattr(args, name) or known.get(name) for name in ("vision_tower", "conv_type", "image_size", "model_max_length")}
    config = read_config(args.version, stage=stage, **chosen)
    tower = load_tower(config.vision_tower, Path(args.version), torch.float32)
    config.clip = tower_fields(tower)
    own_tower = args.train_vision or known.get("train_vision", False)
    if own_tower:
        config.vision_tower = TOWER_FOLDER  # saved inside, even if the base's came from the hub
    model = allocate(config, tokenizer, torch.float32)
    model.model.vision_tower = tower
    adapters = {name.split(".")[-4]: tensor.shape[0] for name, tensor in state.items() if ".lora_A." in name}
    rank = args.lora_r if args.lora_r is not None else next(iter(adapters.values()), 0)
    add_lora(model, rank if adapters else 0, args.lora_alpha or known.get("lora_alpha") or 16, 0.0, sorted(adapters))
    fill(model, state.items(), may_lack=() if own_tower else ("vision_tower",))
    return model.eval(), tokenizer


def probe(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Class, mask and word logits on a fixed noise picture with the tampered answer given."""
    import torch

    from model.types import Label
    from utils.data.conversation import answer, encode, question

    config = model.config
    ids, _ = encode(tokenizer, config, question(config.stage), answer(Label.TAMPERED, config.stage))
    noise = torch.Generator().manual_seed(0)
    clip = torch.randn(1, 3, config.clip["image_size"], config.clip["image_size"], generator=noise)
    sam = torch.randn(1, 3, config.image_size, config.image_size, generator=noise)
    side = (config.image_size, config.image_size)
    with torch.inference_mode():
        out = model(torch.tensor([ids]), images_clip=clip.to(model.dtype), images_sam=sam.to(model.dtype), resized_hw=[side])
        words = model.lm_head(out.hidden[:, -1])
    return {"class logits": out.cls_logits.float(), "mask logits": out.mask_logits[0].float(), "word logits": words.float()}


def compare(before: dict[str, Any], after: dict[str, Any], precision: str) -> None:
    """Print the largest differences; ValueError if one is more than rounding to `precision` explains."""
    for name, want in before.items():
        difference = float((after[name] - want).abs().max())
        limit = TOLERANCE[precision] * max(1.0, float(want.abs().max()))
        print(f"  {name}: largest difference {difference:.2e} (limit {limit:.2e})")
        if not difference <= limit:
            raise ValueError(f"{name} changed by {difference:.3e} from the trained to the written model, more than {limit:.1e}: do not use the written folder")


def main(argv: list[str] | None = None) -> int:
    """Merge, write, reload, compare; 0 when all of it held."""
    args = build_parser().parse_args(argv)
    import transformers

    from model.checkpoint import load_pretrained, save_pretrained
    from model.lora import merge_lora
    from utils.infer.pipeline import DTYPES

    transformers.utils.logging.disable_progress_bar()
    try:
        known = run_args(Path(args.weight))
        model, tokenizer = load_trained(args, known)
        before = probe(model, tokenizer) if args.check else {}
        merge_lora(model)
        save_pretrained(model, tokenizer, args.save_path, dtype=DTYPES[args.precision], args=known)
        print(f"{args.save_path} has been saved ({args.precision}).")
        del model
        gc.collect()
        if args.check:
            # fp16 is only stored: a CPU computes it in fp32
            dtype = DTYPES["fp32" if args.precision == "fp16" else args.precision]
            compare(before, probe(*load_pretrained(args.save_path, dtype=dtype)), args.precision)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
