"""A checkpoint gets experts: a small CLIP for content (model/content.py), a convolutional network for noise (model/noise.py), or both.

    python -m utils.train.experts --version runs/tiny-sida/merged --clip runs/tiny-clip --noise runs/tiny-noise --dataset_dir data/SID_Mini --out ck/SIDA-tiny
    python -m utils.train.experts --version runs/tiny-description/merged --experts ck/SIDA-tiny --dataset_dir data/SID_Mini --out ck/SIDA-tiny-description

A small CLIP's class head is a logistic regression on the train split; experts of another checkpoint come with their heads. An expert is surer of the train
split than of anything else, so what it says is weighed: by the number that, along with the others' and a temperature, makes the validation split's labels
likeliest. The checkpoint's temperature has to be fitted again (evaluate_SIDA.py --save_temperature).

Dimensions: N pictures, F features of one, E experts.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import CLIPVisionModel

from model.checkpoint import load_pretrained, save_pretrained, tower_fields, variant
from model.content import ContentExpert
from model.noise import NoiseExpert
from model.types import Label
from utils.data.records import Record
from utils.data.sampler import some
from utils.data.sid_set import read_split
from utils.infer.pipeline import SidaPipeline
from utils.infer.views import average, turned
from utils.train.noise import load_noise
from utils.train.signals import ignore_signals
from utils.train.small_clip import FEW, Pictures

log = logging.getLogger(__name__)

PENALTY = 1e-3  # inverse strength of the regression's, on features of unit variance
WEIGHTS = (1e-3, 10.0)  # between which the head's is kept
TEMPERATURES = (0.05, 20.0)
PRECISE = {"ftol": 1e-12, "gtol": 1e-8}


@torch.no_grad()
def features(expert: ContentExpert | NoiseExpert, records: Sequence[Record], side: int, workers: int) -> np.ndarray:
    """[N, F] of what the expert sees in pictures as a checkpoint's vision tower of `side` pixels is given them."""
    return torch.cat([expert.see(pixels).flatten(1) for pixels in _batches(records, side, workers)]).double().numpy()


@torch.no_grad()
def opinions(expert: ContentExpert | NoiseExpert, records: Sequence[Record], side: int, workers: int, views: int) -> np.ndarray:
    """[N, 3] class logits of the expert, of pictures as `features`: the mean of `views` looks."""
    looks = (torch.cat([turned(pixels, (side, side), k) for k in range(views)]) for pixels in _batches(records, side, workers))
    return torch.cat([average(expert(expert.see(rows)), views) for rows in looks]).double().numpy()


def _batches(records: Sequence[Record], side: int, workers: int) -> DataLoader[Tensor]:
    return DataLoader(Pictures(records, side), FEW, num_workers=workers, worker_init_fn=ignore_signals)


def fit_head(seen: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[N, F] and [N] labels -> weight [3, F] and bias [3] of the class logits. ValueError where a class is missing."""
    if missing := [label.title for label in Label if label not in labels]:
        raise ValueError(f"no pictures of {missing} in the train split: expected all three classes")
    mean, spread = seen.mean(axis=0), seen.std(axis=0) + 1e-8
    fitted = LogisticRegression(C=PENALTY, max_iter=1000, class_weight="balanced").fit((seen - mean) / spread, labels)
    weight = fitted.coef_ / spread
    return weight, fitted.intercept_ - weight @ mean


def fit_weights(ours: np.ndarray, told: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[E] by which the logits `told` [E, N, 3] are multiplied before they are added to `ours` [N, 3], for the likeliest [N] labels at the best temperature.

    Convex, so there is one answer: a logistic regression on the sums' parts, `ours` being one, whose multiplier is the inverse temperature.
    """
    parts, truth = np.stack([ours, *told]), np.eye(len(Label))[labels]

    def loss(multipliers: np.ndarray) -> tuple[float, np.ndarray]:
        logs = log_softmax(np.tensordot(multipliers, parts, 1), axis=1)
        return -(truth * logs).sum() / len(labels), (parts * (np.exp(logs) - truth)).sum(axis=(1, 2)) / len(labels)

    bounds = [(1 / TEMPERATURES[1], 1 / TEMPERATURES[0])] + [(0, None)] * len(told)
    found = minimize(loss, np.ones(len(parts)), jac=True, bounds=bounds, method="L-BFGS-B", options=PRECISE).x
    return (found[1:] / found[0]).clip(*WEIGHTS)


def verdicts(pipe: SidaPipeline, records: Sequence[Record]) -> np.ndarray:
    """Class logits [N, 3] of a checkpoint, the mean of its looks, up to a number for each picture."""
    probs = np.array([list(answer.probs.values()) for answer in pipe.stream([record.image.read_bytes() for record in records])])
    return np.log(probs.clip(1e-12)) * pipe.model.config.cls_temperature


def content_expert(clip: str | Path, dataset_dir: str, side: int, pictures: int, workers: int) -> ContentExpert:
    """The CLIP in the folder `clip` with a head fitted to at most so many of the train split's pictures, as a vision tower of `side` pixels is given them."""
    tower = CLIPVisionModel.from_pretrained(clip, dtype=torch.float32)
    expert = ContentExpert(tower.config).eval()
    expert.tower.load_state_dict(tower.state_dict())
    known = some(read_split(dataset_dir, "train"), pictures)
    weight, bias = fit_head(features(expert, known, side, workers), np.array([record.label for record in known]))
    expert.head.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    return expert


def attach(
    version: str | Path,
    dataset_dir: str,
    out: str | Path,
    clip: str | Path | None = None,
    noise: str | Path | None = None,
    given: str | Path | None = None,
    pictures: int = 12000,
    workers: int = 1,
) -> Path:
    """Write the checkpoint `version` to `out` with the experts in the folders `clip` and `noise`, else those of the checkpoint `given`, instead of its own.

    ValueError for an expert that does not fit its vision tower's width, none at all, or a split that lacks a class.
    """
    if clip is None and noise is None and given is None:
        raise ValueError("give --clip, --noise or --experts: where are the experts to come from?")
    model, tokenizer = load_pretrained(version)
    side = model.config.clip["image_size"]
    experts: dict[str, ContentExpert | NoiseExpert] = {}
    fields: dict[str, Any] = {"content": None, "noise": None}
    if given is not None:
        other, _ = load_pretrained(given)
        if not (experts := other.model.experts):
            raise ValueError(f"--experts: {given} has none; expected a checkpoint that this command wrote")
        fields = {name: getattr(other.config, name) for name in fields}
    if noise is not None:
        experts["noise"] = load_noise(noise, model.config.mm_hidden_size)
        fields["noise"] = experts["noise"].sizes
    if clip is not None:
        fields["content"] = tower_fields(CLIPVisionModel.from_pretrained(clip, dtype=torch.float32))
    larger = variant(model, tokenizer, **fields).eval()  # refuses what does not fit before anything is computed
    if clip is not None:
        experts["content"] = content_expert(clip, dataset_dir, side, pictures, workers)
    unseen = read_split(dataset_dir, "validation")
    labels = np.array([record.label for record in unseen])
    told = np.stack([opinions(expert, unseen, side, workers, model.config.views) for expert in experts.values()])
    model.model.content = model.model.noise = None
    ours = verdicts(SidaPipeline(model, tokenizer, "cpu", torch.float32), unseen)
    weights = fit_weights(ours, told, labels)
    for name, logits in {"without experts": ours, **dict(zip(experts, told, strict=True)), "with all": ours + np.tensordot(weights, told, 1)}.items():
        log.info("validation accuracy, %s: %.3f", name, (logits.argmax(axis=1) == labels).mean())
    for (name, expert), weight in zip(experts.items(), weights, strict=True):
        log.info("weight of %s: %.3f", name, weight)
        with torch.no_grad():
            expert.head.weight.mul_(weight)
            expert.head.bias.mul_(weight)
        larger.model.get_submodule(name).load_state_dict(expert.state_dict())
    kept = model.state_dict()
    for name, tensor in larger.state_dict().items():
        if name in kept:
            tensor.copy_(kept[name])
    trained = Path(version) / "args.json"
    return save_pretrained(larger, tokenizer, out, dtype=model.config.dtype, args=json.loads(trained.read_text()) if trained.is_file() else None)


def main(argv: Sequence[str] | None = None) -> int:
    """Attach experts from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", required=True, help="checkpoint that is to get them")
    parser.add_argument("--clip", help="folder of a small CLIP (utils.train.small_clip)")
    parser.add_argument("--noise", help="folder of a noise expert (utils.train.noise)")
    parser.add_argument("--experts", dest="given", help="checkpoint whose experts it gets, heads included, where those two give none")
    parser.add_argument("--dataset_dir", required=True, help="its train split fits the CLIP's head, its validation split the weights")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--pictures", type=int, default=12000, help="of the train split, at most")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        attach(**vars(args))
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
