"""Figures from lines: detection, calibration, localization, break-downs, and intervals for the headlines.

Only scikit-learn's and torchmetrics' definitions are used. Pictures that could not be read are in no figure, and counted.

Dimensions: N pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
)
from torchmetrics.functional.classification import multiclass_calibration_error

from model.types import Label
from utils.eval.bootstrap import RESAMPLES, bootstrap
from utils.eval.judging import THRESHOLDS, Line
from utils.eval.metrics import auroc, legacy_figures, legacy_image_iou, macro_f1

CLASSES = list(Label)
HELD_OUT = 0.3  # of the pictures, to fit the temperature on


class Sheet:
    """Lines as columns; tampered pictures' localization as columns with nan elsewhere."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = sorted((line for line in lines if line.error is None), key=lambda line: line.id)
        self.unread = sorted(line.path for line in lines if line.error is not None)
        if not self.lines:
            raise ValueError(f"nothing to evaluate: none of the images could be read, e.g. {self.unread[:3]}")
        self.labels = np.array([line.label for line in self.lines])
        self.judged = np.array([line.predicted for line in self.lines])
        self.logits = np.array([line.logits for line in self.lines])
        self.probs = softmax(self.logits, axis=1)
        self.fake = 1 - self.probs[:, Label.REAL]
        self.names = [line.id for line in self.lines]
        self.sources = [line.origin.get("source", line.id) for line in self.lines]  # pictures of one source are not independent

    def column(self, name: str) -> np.ndarray:
        """[N] of one of Line's fields."""
        return np.array([np.nan if getattr(line, name) is None else getattr(line, name) for line in self.lines], dtype=float)

    def rows(self, label: Label) -> np.ndarray:
        """Numbers of one class's rows."""
        return np.nonzero(self.labels == label)[0]


def summarize(lines: Sequence[Line], protocols: Sequence[str], intervals: bool = True) -> dict[str, Any]:
    """All figures of one evaluation; `protocols` of end2end, oracle, legacy. ValueError when nothing could be read."""
    sheet = Sheet(lines)
    out: dict[str, Any] = {"images": len(sheet.lines), "unreadable": sheet.unread, "detection": detection(sheet), "calibration": calibration(sheet)}
    if len(sheet.rows(Label.TAMPERED)):
        out["localization"] = {name: localization(sheet, name) for name in ("end2end", "oracle") if name in protocols}
        if "legacy" in protocols:
            out["legacy"] = legacy(sheet, out["detection"])
    if len(sheet.rows(Label.REAL)):
        out["false_mask_area"] = float(sheet.column("area")[sheet.rows(Label.REAL)].mean())
    if intervals:
        out["intervals"] = headline(sheet, protocols)
    keys = sorted({key for line in sheet.lines for key in line.origin} - {"source"})
    return out | {"by": {key: breakdown(sheet, key) for key in keys}}


def detection(sheet: Sheet) -> dict[str, Any]:
    """Three classes by the most probable one; real against fake by 1 - P(real)."""
    precision, recall, f1, support = precision_recall_fscore_support(sheet.labels, sheet.judged, labels=CLASSES, zero_division=0)
    rows = zip(Label, precision, recall, f1, support, strict=True)
    return {
        "accuracy": float(accuracy_score(sheet.labels, sheet.judged)),
        "macro_f1": float(f1_score(sheet.labels, sheet.judged, labels=CLASSES, average="macro", zero_division=0)),
        "per_class": {label.title: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)} for label, p, r, f, n in rows},
        "confusion_matrix": confusion_matrix(sheet.labels, sheet.judged, labels=CLASSES).tolist(),
        "real_vs_fake": ranking(sheet.labels != Label.REAL, sheet.fake),
        "one_vs_rest": {label.title: ranking(sheet.labels == label, sheet.probs[:, label]) for label in Label},
    }


def ranking(positive: np.ndarray, scores: np.ndarray) -> dict[str, float] | None:
    """AUROC, AP, and recall at 1 % and 5 % false alarms; None when one side is empty."""
    if positive.all() or not positive.any():
        return None
    false, true, _ = roc_curve(positive, scores)
    at = {f"tpr_at_fpr_{percent}": float(true[false <= percent / 100].max()) for percent in (1, 5)}
    return {"auroc": float(roc_auc_score(positive, scores)), "ap": float(average_precision_score(positive, scores))} | at


def calibration(sheet: Sheet) -> dict[str, Any]:
    """ECE (15 bins) and Brier score on the rest, before and after the temperature that fits the held-out part best (Guo et al. 2017)."""
    part = np.random.default_rng(0).random(len(sheet.labels)) < HELD_OUT
    if part.sum() < 10 or (~part).sum() < 10:
        return {}

    temperature = fit_temperature(sheet.logits[part], sheet.labels[part])
    rest = {"before": sheet.logits[~part], "after": sheet.logits[~part] / temperature}
    return {"temperature": temperature, "fitted_on": int(part.sum()), "measured_on": int((~part).sum())} | {
        name: _calibrated(softmax(logits, axis=1), sheet.labels[~part]) for name, logits in rest.items()
    }


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """By which [N, 3] logits must be divided for the likeliest [N] labels (Guo et al. 2017)."""

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits / np.exp(log_temperature), axis=1)
        return float(-scaled[np.arange(len(labels)), labels].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def _calibrated(probs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    error = multiclass_calibration_error(torch.tensor(probs), torch.tensor(labels), num_classes=len(Label), n_bins=15)
    return {"ece": float(error), "brier": float(brier_score_loss(labels, probs, labels=CLASSES, scale_by_half=False))}


def localization(sheet: Sheet, protocol: str) -> dict[str, float]:
    """Means over tampered pictures, and cIoU over their pixels."""
    rows, prefix = sheet.rows(Label.TAMPERED), "" if protocol == "end2end" else "oracle_"
    overlaps = np.array([getattr(sheet.lines[i], f"{prefix}overlap") for i in rows]).sum(axis=0)
    out = {"f1": float(sheet.column(f"{prefix}f1")[rows].mean()), "giou": float(sheet.column(f"{prefix}iou")[rows].mean())}
    out["ciou"] = float(overlaps[0] / overlaps[1]) if overlaps[1] else 1.0
    ranked = sheet.column("oracle_auroc")[rows]
    if protocol == "end2end":  # an empty mask ranks nothing
        ranked = np.where(np.isnan(ranked) | (sheet.judged[rows] == Label.TAMPERED), ranked, 0.5)
    out["pixel_auroc"] = float(np.nanmean(ranked)) if not np.isnan(ranked).all() else float("nan")
    if protocol == "oracle":
        means = np.array([sheet.lines[i].f1_at for i in rows]).mean(axis=0)
        out |= {"best_f1": float(means.max()), "best_threshold": THRESHOLDS[int(means.argmax())]}
    return out


def legacy(sheet: Sheet, figures: dict[str, Any]) -> dict[str, float]:
    """The original's formulas, by their names."""
    overlaps = [line.legacy for line in sheet.lines if line.legacy is not None]
    intersection, union = np.array(overlaps).sum(axis=0).tolist()
    return legacy_figures(figures, intersection, union, sum(legacy_image_iou(*pair) for pair in overlaps), len(overlaps))


def headline(sheet: Sheet, protocols: Sequence[str]) -> dict[str, dict[str, float]]:
    """95 % bootstrap intervals."""
    tampered = sheet.rows(Label.TAMPERED)
    fake = sheet.labels != Label.REAL
    statistics: dict[str, tuple[Callable[[np.ndarray], float], np.ndarray | None]] = {
        "accuracy": (lambda rows: float((sheet.judged[rows] == sheet.labels[rows]).mean()), None),
        "macro_f1": (lambda rows: macro_f1(sheet.labels[rows], sheet.judged[rows]), None),
    }
    if 0 < fake.sum() < len(fake):
        statistics["auroc"] = (lambda rows: auroc(fake[rows], sheet.fake[rows]), None)
    if len(tampered):
        for protocol, prefix in (("end2end", ""), ("oracle", "oracle_")):
            if protocol in protocols:
                for name in ("iou", "f1"):
                    values = sheet.column(prefix + name)
                    statistics[f"{protocol} {name}"] = (lambda rows, values=values: float(values[rows].mean()), tampered)
    return {name: asdict(bootstrap(statistic, sheet.sources, rows)) for name, (statistic, rows) in statistics.items()}


def breakdown(sheet: Sheet, key: str) -> dict[str, dict[str, float]]:
    """Per value of one of `origin`'s columns: pictures, right class, called fake, and mean IoU of tampered ones."""
    out = {}
    for value in sorted({line.origin[key] for line in sheet.lines if key in line.origin}):
        rows = np.array([i for i, line in enumerate(sheet.lines) if line.origin.get(key) == value])
        tampered = rows[sheet.labels[rows] == Label.TAMPERED]
        out[value] = {
            "images": len(rows),
            "accuracy": float((sheet.judged[rows] == sheet.labels[rows]).mean()),
            "called_fake": float((sheet.judged[rows] != Label.REAL).mean()),
        } | ({"iou": float(sheet.column("iou")[tampered].mean())} if len(tampered) else {})
    return out


def compare(first: Sequence[Line], second: Sequence[Line]) -> dict[str, dict[str, float]]:
    """Second minus first over the pictures that both have, with paired bootstrap intervals and two-sided p-values. ValueError when they share none."""
    sheets = [Sheet(lines) for lines in (first, second)]
    shared = sorted(set(sheets[0].names) & set(sheets[1].names))
    if not shared:
        raise ValueError("the two runs have no picture in common: were they made on the same split?")
    a, b = (Sheet([line for line in sheet.lines if line.id in set(shared)]) for sheet in sheets)
    differences = {"accuracy": (b.judged == b.labels).astype(float) - (a.judged == a.labels), "iou": b.column("iou") - a.column("iou")}
    out = {}
    for name, difference in differences.items():
        rows = np.nonzero(~np.isnan(difference))[0]
        if not len(rows):
            continue
        rng = np.random.default_rng(0)
        draws = np.array([difference[rng.choice(rows, len(rows))].mean() for _ in range(RESAMPLES)])
        low, high = np.percentile(draws, [2.5, 97.5])
        p = min(1.0, 2 * min(float((draws <= 0).mean()), float((draws >= 0).mean())) + 1 / RESAMPLES)
        out[name] = {"images": len(rows), "difference": float(difference[rows].mean()), "low": float(low), "high": float(high), "p": p}
    return out
