"""Figures as a table to read."""

from __future__ import annotations

from typing import Any

from model.types import Label

LOCALIZATION = {
    "giou": "gIoU, mean over images",
    "f1": "F1, mean over images",
    "ciou": "cIoU, over all pixels",
    "mean_iou": "mean IoU of background and tampered",
    "pixel_f1": "F1, over all pixels",
    "giou_end2end": "gIoU, the model's own verdict",
    "f1_end2end": "F1, the model's own verdict",
}


def format_report(figures: dict[str, Any]) -> str:
    """Detection, confusion matrix, localization and the original's own figures, one per line."""
    lines = [f"{figures['images']} images, {len(figures.get('unreadable', []))} unreadable", "", "detection"]
    lines += [f"  accuracy {figures['accuracy']:.4f}   macro F1 {figures['macro_f1']:.4f}", ""]
    lines.append(f"  {'class':<16}{'precision':>10}{'recall':>10}{'f1':>10}{'images':>10}")
    for title, row in figures["per_class"].items():
        lines.append(f"  {title:<16}{row['precision']:>10.4f}{row['recall']:>10.4f}{row['f1']:>10.4f}{row['support']:>10}")
    lines += ["", f"  {'true | judged':<16}" + "".join(f"{label.title:>16}" for label in Label)]
    for label, row in zip(Label, figures["confusion_matrix"], strict=True):
        lines.append(f"  {label.title:<16}" + "".join(f"{count:>16}" for count in row))
    lines += ["", "localization (tampered images, true answer given)" if "giou" in figures else "localization: no tampered images"]
    lines += [f"  {title:<40}{figures[name]:.4f}" for name, title in LOCALIZATION.items() if name in figures]
    lines += ["", "the original's formulas (see docs/faithfulness.md for what they really measure)"]
    lines += [f"  {name:<40}{value:.4f}" for name, value in figures.items() if name.startswith("legacy_")]
    return "\n".join(lines)
