"""Detection and localization figures, and the original's under `legacy_*` names.

Every state is a sum kept by torchmetrics, so any batch size and any number of ranks give the same figures.
Masks: logits [h, w], truth [h, w] in 0..1 with soft edges, both at the resized size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection, SumMetric
from torchmetrics.classification import (
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassJaccardIndex,
    MulticlassPrecision,
    MulticlassRecall,
)
from torchmetrics.functional.classification import binary_auroc, binary_f1_score, binary_jaccard_index, multiclass_f1_score

from model.types import Label

LEGACY_EPS = 1e-10  # the original's guards against division by zero, kept in its figures
LEGACY_MEAN_EPS = 1e-5


def _exact(metric: SumMetric | MeanMetric) -> SumMetric | MeanMetric:
    """float64 sums: pixel counts of a large set pass what float32 can count."""
    return metric.set_dtype(torch.float64)


def macro_f1(labels: np.ndarray, judged: np.ndarray) -> float:
    """F1 averaged over the three classes, 0 for one that is in neither [N] labels nor [N] verdicts.

    scikit-learn's, within float32, in a tenth of its time: intervals need it a thousand times.
    """
    per_class = multiclass_f1_score(torch.from_numpy(judged), torch.from_numpy(labels), len(Label), average="none", validate_args=False)
    return float(per_class.mean())


def auroc(positive: np.ndarray, scores: np.ndarray) -> float:
    """AUROC of scores [N] for positive, bool [N]; nan when one side is empty. As `macro_f1` to scikit-learn's."""
    if positive.all() or not positive.any():
        return float("nan")
    ranks = torch.from_numpy(rankdata(scores) / len(scores))  # torchmetrics would squash what is not in 0..1
    return float(binary_auroc(ranks, torch.from_numpy(positive).long(), validate_args=False))


class Detection(nn.Module):
    """Three-class figures from class logits [B, 3] and labels [B]."""

    def __init__(self) -> None:
        super().__init__()
        classes = len(Label)
        self.all = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(classes, average="micro"),
                "macro_f1": MulticlassF1Score(classes, average="macro"),
                "precision": MulticlassPrecision(classes, average=None),
                "recall": MulticlassRecall(classes, average=None),
                "f1": MulticlassF1Score(classes, average=None),
                "confusion_matrix": MulticlassConfusionMatrix(classes),
            }
        )

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch."""
        self.all.update(logits.float().cpu(), labels.cpu())

    def compute(self) -> dict[str, Any]:
        """accuracy, macro_f1, per_class {title: precision, recall, f1, support}, confusion_matrix [true][predicted]; fractions in 0..1."""
        values = self.all.compute()
        confusion = values["confusion_matrix"].tolist()
        names = ("precision", "recall", "f1")
        per_class = {label.title: {name: float(values[name][label]) for name in names} | {"support": sum(confusion[label])} for label in Label}
        return {"accuracy": float(values["accuracy"]), "macro_f1": float(values["macro_f1"]), "per_class": per_class, "confusion_matrix": confusion}


class Localization(nn.Module):
    """Figures over tampered images, with the true answer teacher-forced (oracle) and with the model's own verdict (end2end)."""

    def __init__(self) -> None:
        super().__init__()
        self.giou, self.f1 = _exact(MeanMetric()), _exact(MeanMetric())
        self.giou_end2end, self.f1_end2end = _exact(MeanMetric()), _exact(MeanMetric())
        self.pixels = MetricCollection({"iou": MulticlassJaccardIndex(2, average=None), "pixel_f1": BinaryF1Score()})

    def update(self, logits: Tensor, truth: Tensor, judged_tampered: bool) -> None:
        """Add one tampered image. An image judged otherwise has, end to end, an empty mask."""
        target, mask = (truth.cpu() > 0.5).long(), (logits.cpu() > 0).long()
        for score, giou, f1 in ((mask, self.giou, self.f1), (mask * judged_tampered, self.giou_end2end, self.f1_end2end)):
            giou.update(binary_jaccard_index(score, target, zero_division=1.0))
            f1.update(binary_f1_score(score, target, zero_division=1.0))
        self.pixels["iou"].update(mask, target)
        self.pixels["pixel_f1"].update(mask.flatten(), target.flatten())

    def compute(self) -> dict[str, float]:
        """gIoU and F1 are means over images, cIoU and pixel F1 over all pixels, mean_iou over background and tampered; {} without images."""
        images = {name: getattr(self, name) for name in ("giou", "f1", "giou_end2end", "f1_end2end")}
        values = {name: metric.compute() for name, metric in images.items()}
        pixels = self.pixels.compute()
        if values["giou"].isnan():
            return {}
        background, tampered = pixels["iou"].tolist()
        out = {name: float(value) for name, value in values.items()}
        return out | {"ciou": tampered, "mean_iou": (background + tampered) / 2, "pixel_f1": float(pixels["pixel_f1"])}


def legacy_overlap(logits: Tensor, truth: Tensor) -> tuple[float, float]:
    """Intersection and union as the original counts them: the truth, [h, w] in 0..1, truncated to int, so soft edges are background."""
    target, mask = truth.cpu().int() == 1, logits.cpu() > 0
    return float((mask & target).sum()), float((mask | target).sum())


def legacy_image_iou(intersection: float, union: float) -> float:
    """Of one image; an empty union counts as 1."""
    return intersection / (union + LEGACY_MEAN_EPS) + (union == 0)


def legacy_figures(detection: dict[str, Any], intersection: float, union: float, image_iou: float, images: float) -> dict[str, float]:
    """Figures as the original names and computes them, from sums over tampered images; accuracy and pixel accuracy are in percent."""
    accuracy, per_class = detection["accuracy"], detection["per_class"].values()
    ciou = intersection / (union + LEGACY_EPS)
    precision = sum(row["precision"] for row in per_class) / len(Label)
    recall = sum(row["recall"] for row in per_class) / len(Label)
    return {
        "legacy_accuracy": 100 * accuracy,
        "legacy_gIoU": image_iou / (images + LEGACY_MEAN_EPS),
        "legacy_cIoU": ciou,
        "legacy_pixel_accuracy": 100 * ciou,
        "legacy_f1": 2 * ciou * accuracy / (ciou + accuracy + LEGACY_EPS),
        "legacy_auc": precision * recall,
    }


class Legacy(nn.Module):
    """The original's localization sums: truth truncated to int, so soft edges are background; images with an empty union count as 1."""

    def __init__(self) -> None:
        super().__init__()
        self.intersection, self.union = _exact(SumMetric()), _exact(SumMetric())
        self.image_iou, self.images = _exact(SumMetric()), _exact(SumMetric())

    def update(self, logits: Tensor, truth: Tensor) -> None:
        """Add one tampered image."""
        intersection, union = legacy_overlap(logits, truth)
        self.intersection.update(intersection)
        self.union.update(union)
        self.image_iou.update(legacy_image_iou(intersection, union))
        self.images.update(1)

    def compute(self, detection: dict[str, Any]) -> dict[str, float]:
        """`legacy_figures` of what was added, over all ranks."""
        return legacy_figures(detection, *(float(sums.compute()) for sums in (self.intersection, self.union, self.image_iou, self.images)))


class Scores(nn.Module):
    """One evaluation: feed it batches of outputs, then `compute()` once, on every rank."""

    def __init__(self) -> None:
        super().__init__()
        self.detection, self.localization, self.legacy = Detection(), Localization(), Legacy()
        self.ce = _exact(MeanMetric())

    def update(self, cls_logits: Tensor, cls_labels: Tensor, mask_logits: list[Tensor], masks: list[Tensor], ce: Tensor | float = 0.0) -> None:
        """Class logits [B, 3], labels [B], B x [n, h, w] mask logits and truths, and the batch's mean language loss."""
        if not len(cls_labels):
            return
        self.detection.update(cls_logits, cls_labels)
        self.ce.update(float(ce), weight=len(cls_labels))
        verdicts = cls_logits.argmax(dim=-1).tolist()
        for logits, truth, verdict, label in zip(mask_logits, masks, verdicts, cls_labels.tolist(), strict=True):
            if label == Label.TAMPERED:
                self.localization.update(logits[0].float(), truth[0], verdict == Label.TAMPERED)
                self.legacy.update(logits[0], truth[0])

    def compute(self) -> dict[str, Any]:
        """All figures, equal on every rank."""
        detection = self.detection.compute()
        images = int(torch.tensor(detection["confusion_matrix"]).sum())
        return {"images": images} | detection | self.localization.compute() | self.legacy.compute(detection) | {"ce": float(self.ce.compute())}
