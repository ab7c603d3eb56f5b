"""Checkpoints on disk: LISA folders, SAM files, SIDA folders, DeepSpeed weights; every load is strict.

A weight's canonical name is its name in the published checkpoints: no `base_model.model.` of a PEFT wrapper, no `.base_layer.`.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPVisionModel, GenerationConfig
from transformers.initialization import no_init_weights

from model.config import SidaConfig
from model.sam import read_sam_file
from model.sida import SIDAForCausalLM
from model.tokens import CLS_TOKEN, END_TOKEN, IM_END_TOKEN, IM_START_TOKEN, SEG_TOKEN, SidaTokenizer
from model.vision import VisionTower

log = logging.getLogger(__name__)

STAGE_TOKENS = {"sida": (CLS_TOKEN, SEG_TOKEN, IM_START_TOKEN, IM_END_TOKEN), "description": (END_TOKEN,)}
NEW_IN_SIDA = ("cls_head", "sida_fc1", "attention_layer", "text_hidden_fcs", "visual_model")  # what a LISA or LLaVA base may lack
HEADS = ("cls_head", "sida_fc1", "attention_layer", "text_hidden_fcs")
VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
TOWER_FOLDER = "vision_tower"
SHOWN = 12  # names listed in an error


def canonical(name: str) -> str:
    """The published name of a weight, whatever wrapper or transformers version it was saved under."""
    name = name.removeprefix("module.").removeprefix("base_model.model.").replace(".base_layer.", ".")
    for prefix in ("model.vision_tower.vision_tower.vision_model.", "model.vision_tower.vision_tower.", "model.vision_tower.vision_model."):
        if name.startswith(prefix):
            return "model.vision_tower." + name.removeprefix(prefix)
    return name


def read_tensors(path: str | Path) -> Iterator[tuple[str, Tensor]]:
    """(canonical name, tensor) of a weight file, or of every shard in a folder. Pickles are read with `weights_only`."""
    for file in _weight_files(Path(path)):
        if file.suffix == ".safetensors":
            with safe_open(str(file), framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118 - not a dict
                    yield canonical(name), shard.get_tensor(name)
        else:
            shard = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            for name, tensor in shard.items():
                yield canonical(name), tensor


def _weight_files(path: Path) -> list[Path]:
    if path.is_file() and path.name.endswith(".index.json"):
        return [path.parent / name for name in sorted(set(json.loads(path.read_text())["weight_map"].values()))]
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"no weights at {path}: expected a .bin, .pth or .safetensors file, an index, or a folder of shards")
    for pattern in ("*.safetensors.index.json", "*.bin.index.json"):
        for index in sorted(path.glob(pattern)):
            return _weight_files(index)
    files = sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
    if not files:
        raise FileNotFoundError(f"no weights in {path}: expected *.safetensors or pytorch_model*.bin, found {sorted(p.name for p in path.iterdir())[:SHOWN]}")
    return files


def read_zero(folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    """(canonical name, fp32 tensor) of a DeepSpeed checkpoint folder (the one with `latest` in it)."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    for name, tensor in get_fp32_state_dict_from_zero_checkpoint(str(folder)).items():
        yield canonical(name), tensor


def read_trained(path: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Weights of a training: a file or folder as `read_tensors` takes, a DeepSpeed folder, or a run folder holding `ckpt_model`."""
    path = Path(path)
    if (path / "ckpt_model").is_dir():
        path = path / "ckpt_model"
    return read_zero(path) if (path / "latest").is_file() else read_tensors(path)


def fill(model: nn.Module, tensors: Iterable[tuple[str, Tensor]], *, may_lack: Sequence[str] = (), new_rows: str = "mean") -> list[str]:
    """Copy `tensors` into `model`, strictly; returns the names left unset, all of families in `may_lack`.

    A vocabulary with fewer rows than the model's is extended: by the mean of its rows, or (`new_rows="normal"`) at random.
    Raises ValueError that lists missing, unexpected and misshapen weights.
    """
    own = {canonical(name): tensor for name, tensor in model.state_dict().items()}
    missing, unexpected, misshapen = set(own), [], []
    for name, tensor in tensors:
        if name.endswith("rotary_emb.inv_freq"):
            continue
        if name not in own:
            unexpected.append(name)
            continue
        missing.discard(name)
        if name in VOCABULARY and tensor.shape[0] < own[name].shape[0]:
            tensor = _extend(tensor, own[name].shape[0], new_rows)
        if tensor.shape != own[name].shape:
            misshapen.append(f"{name} {tuple(tensor.shape)} for {tuple(own[name].shape)}")
            continue
        own[name].copy_(tensor)
    left = sorted(name for name in missing if not set(may_lack).isdisjoint(name.split(".")))
    _complain(missing=sorted(missing - set(left)), unexpected=unexpected, misshapen=misshapen)
    return left


def _extend(tensor: Tensor, rows: int, how: str) -> Tensor:
    extra = tensor.float().mean(dim=0, keepdim=True).expand(rows - len(tensor), -1)
    if how == "normal":
        extra = torch.randn(rows - len(tensor), tensor.shape[1]) * 0.02
    return torch.cat([tensor, extra.to(tensor.dtype)])


def _complain(**wrong: list[str]) -> None:
    if not any(wrong.values()):
        return
    lines = [f"{kind}: {len(names)}, e.g. {', '.join(names[:SHOWN])}" for kind, names in wrong.items() if names]
    raise ValueError("the checkpoint does not fit this network; is it of another size or stage?\n  " + "\n  ".join(lines))


@contextmanager
def _allocating(dtype: torch.dtype) -> Iterator[None]:
    """Modules made inside get uninitialised memory of `dtype`: every weight is about to be filled."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights():
            yield
    finally:
        torch.set_default_dtype(before)


def allocate(config: SidaConfig, tokenizer: SidaTokenizer, dtype: torch.dtype) -> SIDAForCausalLM:
    """The network with unset weights; its vocabulary has at least one row per token."""
    config.vocab_size = max(config.vocab_size, len(tokenizer))
    with _allocating(dtype):
        return SIDAForCausalLM(config, tokenizer.id_of(CLS_TOKEN), tokenizer.id_of(SEG_TOKEN))


def variant(model: SIDAForCausalLM, tokenizer: SidaTokenizer, **fields: Any) -> SIDAForCausalLM:
    """A network like `model` but for these SidaConfig fields, in fp32, with unset weights; its temperature is yet to be fitted."""
    changed = model.config.to_dict() | {"cls_temperature": 1.0, "calibrated_on": 0} | fields
    return allocate(SidaConfig.from_dict(changed), tokenizer, torch.float32)


def reset(model: SIDAForCausalLM, families: Sequence[str]) -> None:
    """Give the heads in `families` PyTorch's initial weights."""
    for family in families:
        for module in getattr(model.model, family).modules():
            for init in (getattr(module, "reset_parameters", None), getattr(module, "_reset_parameters", None)):
                if init is not None:
                    init()


def load_tower(name: str, folder: Path, dtype: torch.dtype) -> VisionTower:
    """The vision tower called `name`: a folder inside the checkpoint, another folder, or a hub name."""
    place = next((str(path) for path in (folder / name, Path(name)) if path.is_dir()), name)
    try:
        return VisionTower.from_pretrained(place, dtype=dtype)
    except OSError as error:
        fix = "give --vision-tower the path of clip-vit-large-patch14"
        raise FileNotFoundError(f"no vision tower {name!r}, neither as a folder nor on the hub: {fix}") from error


def read_config(folder: str | Path, **overrides: Any) -> SidaConfig:
    """config.json of a LISA or SIDA folder; overrides that are None leave the file's value. ValueError for a value that `SidaConfig` refuses."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no config.json in {folder}: expected the folder of a LISA or SIDA checkpoint (download it to ck/ and give its path)")
    given = {name: value for name, value in overrides.items() if value is not None}
    fields, _ = SidaConfig.get_config_dict(folder)
    return SidaConfig.from_dict(fields | given)  # from_pretrained would set them unchecked


def load_pretrained(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", **overrides: Any
) -> tuple[SIDAForCausalLM, SidaTokenizer]:
    """A finished SIDA checkpoint, in eval mode on `device`; `overrides` are SidaConfig fields such as vision_tower."""
    folder = Path(folder)
    config, tokenizer = read_config(folder, **overrides), SidaTokenizer.from_pretrained(folder)
    if END_TOKEN in tokenizer.added and "stage" not in SidaConfig.get_config_dict(folder)[0]:
        config.stage = "description"
    tower = load_tower(config.vision_tower, folder, dtype)
    config.clip = tower_fields(tower)
    model = allocate(config, tokenizer, dtype)
    model.model.vision_tower = tower
    fill(model, read_tensors(folder), may_lack=("vision_tower",))
    return model.eval().to(device), tokenizer


def load_for_training(
    version: str | Path,
    stage: str,
    *,
    vision_pretrained: str | None = None,
    reinit_heads: bool = False,
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> tuple[SIDAForCausalLM, SidaTokenizer]:
    """A LISA folder (stage sida) or SIDA folder (description) made ready: the stage's tokens added, absent heads initialised.

    `reinit_heads` repeats the original, which initialises all heads again and takes the whole SAM from `vision_pretrained`.
    """
    folder = Path(version)
    config, tokenizer = read_config(folder, **overrides, stage=stage, cls_temperature=1.0, calibrated_on=0, views=1), SidaTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(STAGE_TOKENS[stage])
    tower = load_tower(config.vision_tower, folder, dtype)
    config.clip = tower_fields(tower)
    model = allocate(config, tokenizer, dtype)
    model.model.vision_tower = tower
    lacking = NEW_IN_SIDA if stage == "sida" else ()
    left = fill(model, read_tensors(folder), may_lack=(*lacking, "vision_tower"), new_rows="normal" if reinit_heads else "mean")
    absent = [family for family in HEADS if reinit_heads or any(f"model.{family}." in name for name in left)]
    reset(model, absent)
    if reinit_heads or any("visual_model" in name for name in left):
        if vision_pretrained is None:
            raise ValueError(f"{folder} has no SAM weights: give --vision_pretrained the path of sam_vit_h_4b8939.pth")
        fill(model.model.visual_model, read_sam_file(vision_pretrained).items())
    log.info("loaded %s; initialised anew: %s", folder, absent or "nothing")
    return model, tokenizer


def tower_fields(tower: CLIPVisionModel) -> dict[str, Any]:
    """The fields of `SidaConfig.clip`, or `content`, from the tower that was really loaded."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size", "hidden_act", "layer_norm_eps", "stem")
    return {name: getattr(tower.config, name) for name in names if hasattr(tower.config, name)}


def save_pretrained(
    model: SIDAForCausalLM, tokenizer: SidaTokenizer, folder: str | Path, *, dtype: torch.dtype | None = None, args: dict[str, Any] | None = None
) -> Path:
    """Write an ordinary checkpoint folder: safetensors shards, tokenizer, config, generation config, `args.json`.

    A vision tower that came from a local folder is saved inside; one from the hub stays a name. OSError, with the numbers, when the disk is too small.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {canonical(k): v.detach().to("cpu", dtype or v.dtype).contiguous() for k, v in model.state_dict().items() if ".vision_tower." not in k}
    needed = sum(v.numel() * v.element_size() for v in state.values())
    if (free := shutil.disk_usage(folder).free) < needed * 1.05:
        raise OSError(f"saving to {folder} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
    if Path(model.config.vision_tower).is_dir() or model.config.vision_tower == TOWER_FOLDER:
        tower = model.model.vision_tower
        tower.save_pretrained(folder / TOWER_FOLDER, state_dict={k: v.to("cpu", dtype or v.dtype) for k, v in tower.state_dict().items()})
        model.config.vision_tower = model.config.mm_vision_tower = TOWER_FOLDER
    save_torch_state_dict(state, str(folder), max_shard_size="5GB")
    model.config.architectures = ["SIDAForCausalLM"]
    model.config.dtype = dtype or model.dtype
    model.config.save_pretrained(folder)
    GenerationConfig(bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id, pad_token_id=model.config.pad_token_id).save_pretrained(folder)
    tokenizer.save_pretrained(folder, model.config.model_max_length)
    (folder / "args.json").write_text(json.dumps(args or {}, indent=2, default=str) + "\n")
    return folder


def write_encoders(model: SIDAForCausalLM, folder: str | Path) -> None:
    """Put `model`'s vision tower and SAM's image encoder into the checkpoint at `folder`, which keeps everything else."""
    folder, family = Path(folder), "model.visual_model.image_encoder."
    state = dict(read_tensors(folder))
    state |= {name: tensor.detach().to(state[name].dtype) for name, tensor in model.state_dict().items() if name.startswith(family)}
    save_torch_state_dict({name: tensor.contiguous() for name, tensor in state.items()}, str(folder), max_shard_size="5GB")
    model.model.vision_tower.save_pretrained(folder / TOWER_FOLDER)
