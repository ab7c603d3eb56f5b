"""A checkpoint gets a content expert (model/content.py): a small CLIP, a class head fitted on the train split, its weight on the validation split.

    python -m utils.train.content --version runs/tiny-sida/merged --clip runs/small-clip --dataset_dir data/SID_Mini --out ck/SIDA-tiny

The head is a logistic regression. It is surer of the train split than of anything else, so what it says is weighed: by the number that, along with a
temperature, makes the validation split's labels likeliest. The checkpoint's temperature has to be fitted again (evaluate_SIDA.py --save_temperature).

Dimensions: N pictures, F features of one.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from torch.utils.data import DataLoader
from transformers import CLIPVisionModel

from model.checkpoint import load_pretrained, save_pretrained, tower_fields, variant
from model.content import ContentExpert
from model.types import Label
from utils.data.records import Record
from utils.data.sampler import some
from utils.data.sid_set import read_split
from utils.infer.pipeline import SidaPipeline
from utils.train.signals import ignore_signals
from utils.train.small_clip import FEW, Pictures

log = logging.getLogger(__name__)

PENALTY = 1e-3  # inverse strength of the regression's, on features of unit variance
WEIGHTS = (1e-3, 10.0)  # between which the head's is sought
TEMPERATURES = (0.05, 20.0)
PRECISE = {"xatol": 1e-3, "fatol": 1e-7}  # of logarithms, of the loss


@torch.no_grad()
def features(expert: ContentExpert, records: Sequence[Record], side: int, workers: int) -> np.ndarray:
    """[N, F] of what the expert sees in pictures as a checkpoint's vision tower of `side` pixels is given them."""
    loader = DataLoader(Pictures(records, side), FEW, num_workers=workers, worker_init_fn=ignore_signals)
    return torch.cat([expert.see(pixels).flatten(1) for pixels in loader]).double().numpy()


def fit_head(seen: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[N, F] and [N] labels -> weight [3, F] and bias [3] of the class logits. ValueError where a class is missing."""
    if missing := [label.title for label in Label if label not in labels]:
        raise ValueError(f"no pictures of {missing} in the train split: expected all three classes")
    mean, spread = seen.mean(axis=0), seen.std(axis=0) + 1e-8
    fitted = LogisticRegression(C=PENALTY, max_iter=1000, class_weight="balanced").fit((seen - mean) / spread, labels)
    weight = fitted.coef_ / spread
    return weight, fitted.intercept_ - weight @ mean


def fit_weight(ours: np.ndarray, told: np.ndarray, labels: np.ndarray) -> float:
    """By which the logits `told` [N, 3] are multiplied before they are added to `ours`, for the likeliest [N] labels at the best temperature."""

    def loss(logs: np.ndarray) -> float:
        weight, temperature = np.exp(logs)
        return float(-log_softmax((ours + weight * told) / temperature, axis=1)[np.arange(len(labels)), labels].mean())

    return float(np.exp(minimize(loss, np.zeros(2), bounds=[np.log(WEIGHTS), np.log(TEMPERATURES)], method="Nelder-Mead", options=PRECISE).x[0]))


def verdicts(pipe: SidaPipeline, records: Sequence[Record]) -> np.ndarray:
    """Class logits [N, 3] of a checkpoint, up to a number for each picture."""
    probs = np.array([list(answer.probs.values()) for answer in pipe.stream([record.image.read_bytes() for record in records])])
    return np.log(probs.clip(1e-12)) * pipe.model.config.cls_temperature


def attach(version: str | Path, clip: str | Path, dataset_dir: str, out: str | Path, pictures: int = 12000, workers: int = 1) -> Path:
    """Write the checkpoint `version` with the CLIP in the folder `clip` for an expert to `out`; an expert that it has is replaced.

    ValueError for a CLIP of another width than its vision tower, or a split that lacks a class.
    """
    model, tokenizer = load_pretrained(version)
    tower = CLIPVisionModel.from_pretrained(clip, dtype=torch.float32)
    larger = variant(model, tokenizer, content=tower_fields(tower)).eval()
    expert = larger.model.content
    expert.tower.load_state_dict(tower.state_dict())
    sides = model.config.clip["image_size"], workers
    known = some(read_split(dataset_dir, "train"), pictures)
    weight, bias = fit_head(features(expert, known, *sides), np.array([record.label for record in known]))
    unseen = read_split(dataset_dir, "validation")
    labels = np.array([record.label for record in unseen])
    told = features(expert, unseen, *sides) @ weight.T + bias
    model.model.content = None
    ours = verdicts(SidaPipeline(model, tokenizer, "cpu", torch.float32), unseen)
    strength = fit_weight(ours, told, labels)
    alone, expert_alone, both = ((logits.argmax(axis=1) == labels).mean() for logits in (ours, told, ours + strength * told))
    log.info("validation accuracy, one look: without the expert %.3f, the expert alone %.3f, both %.3f; its weight %.3f", alone, expert_alone, both, strength)
    expert.head.load_state_dict({"weight": torch.tensor(strength * weight), "bias": torch.tensor(strength * bias)})
    weights = model.state_dict()
    for name, tensor in larger.state_dict().items():
        if not name.startswith("model.content."):
            tensor.copy_(weights[name])
    trained = Path(version) / "args.json"
    return save_pretrained(larger, tokenizer, out, dtype=model.config.dtype, args=json.loads(trained.read_text()) if trained.is_file() else None)


def main(argv: Sequence[str] | None = None) -> int:
    """Attach an expert from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", required=True, help="checkpoint that is to get one")
    parser.add_argument("--clip", required=True, help="folder of a small CLIP (utils.train.small_clip)")
    parser.add_argument("--dataset_dir", required=True, help="its train split fits the head, its validation split the weight")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--pictures", type=int, default=12000, help="of the train split, at most")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        attach(args.version, args.clip, args.dataset_dir, args.out, args.pictures, args.workers)
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
