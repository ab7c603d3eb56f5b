"""The same network with a smaller mask decoder: SAM's has room for any object at any click, ours draws one mask for one prompt.

    python -m utils.train.prune --version runs/tiny-joint/merged --dataset_dir data/SID_Mini --neurons 256 --out runs/tiny-pruned

Of each MLP between the decoder's attentions, which sees a prompt's few tokens alone, the neurons stay that move its output most; its last matrix is fitted
anew, so that they say what all said. What is never asked for (three masks more, how good a mask is) goes. It needs a short training afterwards: the tokens
that went were looked at by those that stay.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from model.checkpoint import load_pretrained, save_pretrained, variant
from model.sida import SIDAForCausalLM
from model.types import Label
from utils.data.collate import collate
from utils.data.dataset import SidaDataset, SidaProcessor
from utils.data.sampler import some
from utils.data.sid_set import read_split

PICTURES, FEW = 256, 8  # tampered ones, whose prompts tell what moves the output; at a time
RIDGE = 1e-3  # of the neurons' mean square, added to it
DECODER = "model.visual_model.mask_decoder."


@torch.no_grad()
def given(model: SIDAForCausalLM, processor: SidaProcessor, dataset_dir: str) -> list[Tensor]:
    """What the second matrix of each MLP of the decoder is given [rows, neurons], teacher-forced on tampered pictures. ValueError without any."""
    records = [record for record in read_split(dataset_dir, "train", descriptions=True) if record.label is Label.TAMPERED]
    if not records:
        raise ValueError(f"no tampered pictures in the train split of {dataset_dir}: expected some, they tell which neurons are needed")
    dataset = SidaDataset(some(records, PICTURES), processor)
    ends = [layer.mlp.lin2 for layer in model.model.visual_model.mask_decoder.transformer.layers]
    rows: list[list[Tensor]] = [[] for _ in ends]
    hooks = [end.register_forward_pre_hook(lambda _, args, kept=kept: kept.append(args[0].flatten(0, 1))) for end, kept in zip(ends, rows, strict=True)]
    for start in range(0, len(dataset), FEW):
        batch, _ = collate([dataset[i] for i in range(start, min(start + FEW, len(dataset)))])
        model(**batch.model_inputs())
    for hook in hooks:
        hook.remove()
    return [torch.cat(kept) for kept in rows]


def thinned(first: nn.Linear, second: nn.Linear, rows: Tensor, count: int) -> tuple[Tensor, ...]:
    """An MLP's weights and biases, first and second, with `count` neurons; `rows` [N, neurons] of the second's input tell which, and fit the second."""
    kept = (rows.var(dim=0) * second.weight.square().sum(dim=0)).topk(count).indices.sort().values
    x, y = rows[:, kept], rows @ second.weight.T
    level, target = x.mean(dim=0), y.mean(dim=0)
    x, y = (x - level).double(), (y - target).double()
    gram = x.T @ x
    gram += RIDGE * gram.diagonal().mean() * torch.eye(count, dtype=gram.dtype)
    weight = torch.linalg.solve(gram, x.T @ y).T.float()
    return first.weight[kept], first.bias[kept], weight, second.bias + target - weight @ level


@torch.no_grad()
def prune(version: str | Path, dataset_dir: str, neurons: int, out: str | Path) -> Path:
    """Write the checkpoint `version` with `neurons` in each MLP of its mask decoder, and one mask, to `out`. ValueError for more neurons than it has."""
    model, tokenizer = load_pretrained(version)
    layers = model.model.visual_model.mask_decoder.transformer.layers
    most = layers[0].mlp.lin1.out_features
    if not 0 < neurons <= most:
        raise ValueError(f"--neurons is {neurons}: expected 1 to the {most} of {version}")
    weights = dict(model.state_dict())
    for i, (layer, rows) in enumerate(zip(layers, given(model, SidaProcessor(tokenizer, model.config), dataset_dir), strict=True)):
        names = [f"{DECODER}transformer.layers.{i}.mlp.{part}" for part in ("lin1.weight", "lin1.bias", "lin2.weight", "lin2.bias")]
        weights |= zip(names, thinned(layer.mlp.lin1, layer.mlp.lin2, rows, neurons), strict=True)
    smaller = variant(model, tokenizer, sam=model.config.sam | {"decoder_neurons": neurons, "multimask": False})
    for name, tensor in smaller.state_dict().items():
        if f"{DECODER}iou_prediction_head" in name:
            tensor.zero_()
        else:
            tensor.copy_(weights[name][: len(tensor)] if f"{DECODER}mask_tokens" in name else weights[name])
    return save_pretrained(smaller, tokenizer, out, dtype=model.config.dtype)


def main(argv: Sequence[str] | None = None) -> int:
    """Prune from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", required=True, help="checkpoint to start from")
    parser.add_argument("--dataset_dir", required=True, help="pictures of its train split tell which neurons are needed")
    parser.add_argument("--neurons", type=int, default=256, help="of each MLP of the mask decoder (256)")
    parser.add_argument("--out", required=True, help="folder to write")
    args = parser.parse_args(argv)
    try:
        prune(args.version, args.dataset_dir, args.neurons, args.out)
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
