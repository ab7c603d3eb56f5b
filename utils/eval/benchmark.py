"""SID_Mini's test split, figure by figure, beside baselines fitted in the same run.

    python -m utils.eval.benchmark --version ck/SIDA-tiny --dataset_dir data/SID_Mini --out docs/benchmarks

End to end: the model decides, a tampered picture judged otherwise has an empty mask. Oracle: every mask is decoded from the true answer.

Dimensions: N pictures, S their side, pixels.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader
from tqdm import tqdm

from model.checkpoint import load_pretrained
from model.quantize import quantize
from model.sida import SIDAForCausalLM
from model.tokens import SidaTokenizer
from model.types import Label
from utils.data.collate import collate
from utils.data.conversation import answer, encode, question
from utils.data.dataset import SidaDataset, SidaProcessor, decode
from utils.data.records import Record
from utils.data.sid_set import read_split
from utils.eval import baselines
from utils.eval.audit import metadata_accuracy, thumbnail_auroc
from utils.eval.bootstrap import Estimate, bootstrap
from utils.eval.judging import look, resized_to
from utils.eval.metrics import auroc, macro_f1


@dataclass
class Answers:
    """What a model says about N pictures."""

    probs: np.ndarray  # [N, 3]
    masks: np.ndarray  # float16 [N, S, S] logits, decoded as if each picture were tampered


@dataclass
class Truth:
    """What is so: classes [N], masks bool [N, S, S], and the manifest's lines."""

    labels: np.ndarray
    masks: np.ndarray
    made: list[dict[str, object]]

    @property
    def sources(self) -> list[str]:
        """The photograph or generated picture each was made from."""
        return [str(row["source"]) for row in self.made]


@torch.inference_mode()
def ask(model: SIDAForCausalLM, tokenizer: SidaTokenizer, records: Sequence[Record], batch_size: int = 16) -> Answers:
    """Verdicts, which need the prompt alone, and masks at the [SEG] of a teacher-forced tampered answer, in one pass."""
    processor = SidaProcessor(tokenizer, model.config)
    stage = model.config.stage
    ids = torch.tensor(encode(tokenizer, model.config, question(stage), answer(Label.TAMPERED, stage))[0])
    probs, masks = [], []
    for batch, unreadable in tqdm(DataLoader(SidaDataset(records, processor, replace_unreadable=False), batch_size, collate_fn=collate), desc="asking"):
        if unreadable:
            raise ValueError(f"cannot read {unreadable}: build the data set anew")
        cls_logits, found = look(model, batch, ids, model.config.views, lambda logits: range(len(logits)))
        probs.append(cls_logits.float().softmax(dim=-1))
        masks += [resized_to(found[i], size).half() for i, size in enumerate(batch.original_hw)]
    return Answers(torch.cat(probs).numpy(), torch.stack(masks).numpy())


def read_truth(root: Path, split: str, records: Sequence[Record]) -> Truth:
    """Classes, masks and making of `records`."""
    made = {row["file"]: row for row in map(json.loads, (root / split / "manifest.jsonl").read_text().splitlines())}
    grays = [decode(record) for record in records]
    masks = np.stack([np.zeros(rgb.shape[:2], bool) if gray is None else gray > 127 for rgb, gray in grays])
    return Truth(np.array([int(record.label) for record in records]), masks, [made[record.id] for record in records])


def iou(predicted: np.ndarray, true: np.ndarray) -> float:
    """Intersection over union of two bool masks; 0 when both are empty."""
    union = (predicted | true).sum()
    return float((predicted & true).sum() / union) if union else 0.0


def pixel_auroc(scores: np.ndarray, true: np.ndarray) -> float:
    """AUROC over one picture's pixels, every second in each direction."""
    return float(roc_auc_score(true[::2, ::2].ravel(), scores[::2, ::2].astype(np.float32).ravel()))


class Figures:
    """Everything one model's answers amount to, as functions of rows, so that each can be resampled."""

    def __init__(self, answers: Answers, truth: Truth) -> None:
        self.truth, self.probs = truth, answers.probs
        self.judged = answers.probs.argmax(axis=1)
        tampered = truth.labels == Label.TAMPERED
        found = [mask > 0 if judged == Label.TAMPERED else np.zeros_like(mask, bool) for mask, judged in zip(answers.masks, self.judged, strict=True)]
        self.area = np.array([mask.mean() for mask in found])
        columns = np.full((4, len(tampered)), np.nan)
        for i in np.nonzero(tampered)[0]:
            logits, mask = answers.masks[i], truth.masks[i]
            ranked = pixel_auroc(logits, mask)
            columns[:, i] = iou(found[i], mask), iou(logits > 0, mask), ranked if self.judged[i] == Label.TAMPERED else 0.5, ranked
        self.iou, self.oracle_iou, self.auroc, self.oracle_auroc = columns

    def accuracy(self, rows: np.ndarray) -> float:
        """Share of right verdicts, three classes."""
        return float((self.judged[rows] == self.truth.labels[rows]).mean())

    def macro_f1(self, rows: np.ndarray) -> float:
        """F1 averaged over the three classes."""
        return macro_f1(self.truth.labels[rows], self.judged[rows])

    def fake_auroc(self, rows: np.ndarray) -> float:
        """AUROC of 1 - P(real) against fake; nan when only one side is among the rows."""
        return auroc(self.truth.labels[rows] != Label.REAL, 1 - self.probs[rows, Label.REAL])

    def called_fake(self, rows: np.ndarray) -> float:
        """Share judged full synthetic or tampered."""
        return float((self.judged[rows] != Label.REAL).mean())

    def mean(self, column: str) -> Callable[[np.ndarray], float]:
        """The mean of one of this object's per-picture columns."""
        return lambda rows: float(np.mean(getattr(self, column)[rows]))


def headline(figures: Figures) -> dict[str, Estimate]:
    """The figures that have bars."""
    truth = figures.truth
    of = {label: np.nonzero(truth.labels == label)[0] for label in Label}
    sources = truth.sources
    return {
        "three-class accuracy": bootstrap(figures.accuracy, sources),
        "macro F1": bootstrap(figures.macro_f1, sources),
        "real vs fake AUROC": bootstrap(figures.fake_auroc, sources),
        "mask IoU, end to end": bootstrap(figures.mean("iou"), sources, of[Label.TAMPERED]),
        "mask IoU, oracle": bootstrap(figures.mean("oracle_iou"), sources, of[Label.TAMPERED]),
        "pixel AUROC, end to end": bootstrap(figures.mean("auroc"), sources, of[Label.TAMPERED]),
        "pixel AUROC, oracle": bootstrap(figures.mean("oracle_auroc"), sources, of[Label.TAMPERED]),
        "false-mask area on real": bootstrap(figures.mean("area"), sources, of[Label.REAL]),
    } | {f"recall of {label.title}": bootstrap(figures.accuracy, sources, of[label]) for label in Label}


def breakdown(figures: Figures, column: str) -> dict[str, dict[str, Estimate | int]]:
    """Per manipulation kind or generator: pictures, recall of the class, recall as fake and, for kinds, both IoUs."""
    values = [str(row.get(column, "")) for row in figures.truth.made]
    table: dict[str, dict[str, Estimate | int]] = {}
    for name in sorted(set(values) - {""}):
        rows = np.nonzero(np.array(values) == name)[0]
        table[name] = {"pictures": len(rows)}
        for title, statistic in (("right class", figures.accuracy), ("called fake", figures.called_fake)):
            table[name][title] = bootstrap(statistic, figures.truth.sources, rows)
        if column == "kind":
            table[name]["IoU, end to end"] = bootstrap(figures.mean("iou"), figures.truth.sources, rows)
            table[name]["IoU, oracle"] = bootstrap(figures.mean("oracle_iou"), figures.truth.sources, rows)
    return table


def against_real(scores: np.ndarray, truth: Truth) -> dict[str, Estimate]:
    """AUROC of scores [N], higher for fake, between real pictures and each sort of fake."""
    gan = np.array([str(row.get("generator", "")).startswith("esrgan") for row in truth.made])
    real, synthetic, tampered = (truth.labels == label for label in Label)
    sorts = {"any fake": ~real, "GAN re-synthesis": synthetic & gan, "text-to-image": synthetic & ~gan, "tampered": tampered}

    return {name: bootstrap(lambda rows: auroc(~real[rows], scores[rows]), truth.sources, np.nonzero(real | fake)[0]) for name, fake in sorts.items()}


def read_scores(path: Path, records: Sequence[Record]) -> np.ndarray:
    """[N] scores of another detector from a CSV of `file,score`. ValueError when a picture has none."""
    with path.open(newline="") as table:
        scores = {row["file"]: float(row["score"]) for row in csv.DictReader(table)}
    missing = [record.id for record in records if record.id not in scores]
    if missing:
        raise ValueError(f"{path} has no score of {len(missing)} pictures, e.g. {missing[0]}: expected lines of file,score for the whole split")
    return np.array([scores[record.id] for record in records])


def shortcuts(train: Sequence[Record], test: Sequence[Record], made: tuple[dict[str, str], dict[str, str]]) -> dict[str, float]:
    """What the audit finds; `made` maps record ids to generators, for train and test."""

    def of(label: Label, gan: bool | None = None) -> list[list[Record]]:
        return [
            [record for record in records if record.label is label and gan in (None, names.get(record.id, "").startswith("esrgan"))]
            for records, names in zip((train, test), made, strict=True)
        ]

    real = of(Label.REAL)
    sides = {"tampered": of(Label.TAMPERED), "GAN re-synthesis": of(Label.FULL_SYNTHETIC, True), "text-to-image": of(Label.FULL_SYNTHETIC, False)}
    found = {"metadata and file size, three-class accuracy": metadata_accuracy(train, test)}
    return found | {f"thumbnail AUROC, {name} against real": thumbnail_auroc((real[0], side[0]), (real[1], side[1])) for name, side in sides.items()}


def generators(root: Path, split: str) -> dict[str, str]:
    """Record id -> generator, from the manifest."""
    return {row["file"]: row.get("generator", "") for row in map(json.loads, (root / split / "manifest.jsonl").read_text().splitlines())}


def quantised(version: Path, bits: int, records: Sequence[Record], truth: Truth) -> dict[str, Estimate]:
    """`headline` of the checkpoint with its language model in 8 or 4 bits."""
    model, tokenizer = load_pretrained(version)
    quantize(model, bits, torch.float32)
    return headline(Figures(ask(model.to("cpu").eval(), tokenizer, records), truth))  # the move packs the weights


def run(version: Path, root: Path, split: str, fitted_on: int, others: dict[str, Path], bits: Sequence[int] = ()) -> dict[str, object]:
    """All tables; baselines are fitted on the first `fitted_on` train pictures of each class, `others` are files of other detectors' scores."""
    records = read_split(root, split)
    scores = {name: read_scores(path, records) for name, path in others.items()}
    truth = read_truth(root, split, records)
    by_class = [[record for record in read_split(root, "train") if record.label is label][:fitted_on] for label in Label]
    train = [record for group in by_class for record in group]
    model, tokenizer = load_pretrained(version)
    figures = Figures(ask(model, tokenizer, records), truth)
    net = baselines.fit(train)
    statistics = Figures(Answers(*baselines.predict(net, records, truth.masks.shape[-1])), truth)
    everything = np.full((len(records), 3), 1e-6)
    everything[:, Label.TAMPERED] = 1
    ones = Figures(Answers(everything, np.ones(truth.masks.shape, np.float16)), truth)
    scores = {"SIDA-tiny": 1 - figures.probs[:, Label.REAL], "statistics net": 1 - statistics.probs[:, Label.REAL]} | scores
    return {
        "pictures": {label.title: int((truth.labels == label).sum()) for label in Label},
        "SIDA-tiny": headline(figures),
        **{f"SIDA-tiny, {n} bits": quantised(version, n, records, truth) for n in bits},
        f"statistics net ({sum(p.numel() for p in net.parameters())} weights)": headline(statistics),
        "everything tampered everywhere": headline(ones),
        "against real": {name: against_real(values, truth) for name, values in scores.items()},
        "kind": breakdown(figures, "kind"),
        "generator": breakdown(figures, "generator"),
        "shortcuts": shortcuts(train, records, (generators(root, "train"), generators(root, split))),
    }


def markdown(tables: dict[str, object]) -> str:
    """The tables of `run` as Markdown."""
    models = {name: table for name, table in tables.items() if isinstance(table, dict) and "macro F1" in table}
    first = next(iter(models.values()))
    lines = ["| figure | " + " | ".join(models) + " |", "|---|" + "---|" * len(models)]
    lines += [f"| {name} | " + " | ".join(str(table[name]) for table in models.values()) + " |" for name in first]
    for column in ("against real", "kind", "generator"):
        rows = tables[column]
        titles = list(next(iter(rows.values())))
        lines += ["", f"| {'AUROC against real' if column == 'against real' else column} | " + " | ".join(titles) + " |", "|---|" + "---|" * len(titles)]
        lines += [f"| {name} | " + " | ".join(str(row[title]) for title in titles) + " |" for name, row in rows.items()]
    lines += ["", "| without looking | |", "|---|---|"] + [f"| {name} | {value:.3f} |" for name, value in tables["shortcuts"].items()]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", type=Path, default=Path("ck/SIDA-tiny"))
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--fitted_on", type=int, default=2000, help="train pictures of each class for the baselines")
    parser.add_argument("--scores", nargs="*", default=[], metavar="NAME=CSV", help="other detectors' scores, lines of file,score, higher for fake")
    parser.add_argument("--bits", type=int, nargs="*", default=[], choices=(8, 4), help="also with a quantised language model")
    parser.add_argument("--out", type=Path, help="folder for tables.md and tables.json")
    args = parser.parse_args(argv)
    others = {name: Path(path) for name, _, path in (pair.partition("=") for pair in args.scores)}
    tables = run(args.version, args.dataset_dir, args.split, args.fitted_on, others, args.bits)
    sys.stdout.write(markdown(tables))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "tables.md").write_text(markdown(tables))
        (args.out / "tables.json").write_text(json.dumps(tables, indent=1, default=vars) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
