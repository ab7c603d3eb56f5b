"""An evaluation for readers: report.md, metrics.json, table.csv, table.tex and plots."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.calibration import calibration_curve
from sklearn.metrics import ConfusionMatrixDisplay, RocCurveDisplay

from model.types import Label
from utils.eval.judging import Line
from utils.eval.summary import Sheet

HEADLINES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC, real against fake",
    "end2end iou": "mask IoU, end to end",
    "end2end f1": "mask F1, end to end",
    "oracle iou": "mask IoU, oracle",
    "oracle f1": "mask F1, oracle",
}


def write_pages(folder: Path, figures: Mapping[str, Any], lines: Sequence[Line], title: str, more: Sequence[str] = ()) -> None:
    """`figures`: corruption ("" for none) -> summarize(...); `more`: pictures that are in the folder already."""
    clean = figures[""]
    (folder / "metrics.json").write_text(json.dumps(figures, indent=1) + "\n")
    rows = [(HEADLINES[name], value["value"], value["low"], value["high"]) for name, value in clean["intervals"].items()]
    with (folder / "table.csv").open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["figure", "value", "low", "high"])
        writer.writerows((name, *(f"{x:.4f}" for x in values)) for name, *values in rows)
    body = "\n".join(f"{name} & {value:.3f} & [{low:.3f}, {high:.3f}] \\\\" for name, value, low, high in rows)
    (folder / "table.tex").write_text(
        f"\\begin{{tabular}}{{lrr}}\n\\toprule\nFigure & Value & 95\\,\\% interval \\\\\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"
    )
    plots = draw(folder, Sheet([line for line in lines if line.corruption == ""]), figures) + list(more)
    (folder / "report.md").write_text(report(figures, title, plots))


def report(figures: Mapping[str, Any], title: str, plots: Sequence[str]) -> str:
    """Markdown."""
    clean = figures[""]
    out = [f"# {title}", "", f"{clean['images']} pictures, {len(clean['unreadable'])} unreadable and in no figure.", ""]
    out += ["| figure | value | 95 % interval |", "|---|---|---|"]
    out += [f"| {HEADLINES[name]} | {row['value']:.3f} | [{row['low']:.3f}, {row['high']:.3f}] |" for name, row in clean["intervals"].items()]
    out += ["", "| class | precision | recall | F1 | pictures |", "|---|---|---|---|---|"]
    out += [
        f"| {name} | {row['precision']:.3f} | {row['recall']:.3f} | {row['f1']:.3f} | {row['support']} |"
        for name, row in clean["detection"]["per_class"].items()
    ]
    out += ["", "| true, judged | " + " | ".join(label.title for label in Label) + " |", "|---|---|---|---|"]
    out += [f"| {label.title} | " + " | ".join(map(str, row)) + " |" for label, row in zip(Label, clean["detection"]["confusion_matrix"], strict=True)]
    rankings = {"real against fake": clean["detection"]["real_vs_fake"]} | {
        f"{name} against the rest": row for name, row in clean["detection"]["one_vs_rest"].items()
    }
    out += ["", "| ranking | AUROC | AP | recall at 1 % false alarms | at 5 % |", "|---|---|---|---|---|"]
    out += [f"| {name} | {' | '.join(f'{value:.3f}' for value in row.values())} |" for name, row in rankings.items() if row]
    if calibration := clean["calibration"]:
        out += [
            "",
            f"Temperature {calibration['temperature']:.2f}, fitted on {calibration['fitted_on']} pictures; on the other {calibration['measured_on']}:",
            "",
        ]
        out += ["| | ECE | Brier |", "|---|---|---|"]
        out += [f"| {when} scaling | {calibration[when]['ece']:.3f} | {calibration[when]['brier']:.3f} |" for when in ("before", "after")]
    for name, row in clean.get("localization", {}).items():
        out += ["", f"Localization, {name}: " + ", ".join(f"{key} {value:.3f}" for key, value in row.items())]
    if told := clean.get("explanation"):
        out += ["", f"Explanations of {told['images']} pictures that have a description, {told['unparsed']} of them not parsed whole:", ""]
        out += ["| figure | value | 95 % interval |", "|---|---|---|"]
        out += [f"| {name} | {row['value']:.3f} | [{row['low']:.3f}, {row['high']:.3f}] |" for name, row in told["figures"].items()]
    if "legacy" in clean:
        out += [
            "",
            "The original's formulas (docs/faithfulness.md says what they measure): "
            + ", ".join(f"{key} {value:.4f}" for key, value in clean["legacy"].items()),
        ]
    for key, table in clean["by"].items():
        out += ["", f"| {key} | pictures | accuracy | called fake | mask IoU |", "|---|---|---|---|---|"]
        out += [
            f"| {name} | {row['images']} | {row['accuracy']:.3f} | {row['called_fake']:.3f} | {cell(row, 'iou')} |"
            for name, row in table.items()
        ]
    if len(figures) > 1:
        out += ["", "| corruption | accuracy | macro F1 | AUROC | mask IoU |", "|---|---|---|---|---|"]
        out += [f"| {name or 'none'} | {' | '.join(f'{value:.3f}' for value in strip(one).values())} |" for name, one in figures.items()]
    return "\n".join([*out, "", *(f"![{Path(name).stem.replace('_', ' ')}]({name})" for name in plots)]) + "\n"


def strip(figures: Mapping[str, Any]) -> dict[str, float]:
    """The four figures of a robustness table; nan where there is none."""
    detection = figures["detection"]
    auroc = (detection["real_vs_fake"] or {}).get("auroc", float("nan"))
    iou = figures.get("localization", {}).get("end2end", {}).get("giou", float("nan"))
    return {"accuracy": detection["accuracy"], "macro F1": detection["macro_f1"], "AUROC": auroc, "mask IoU": iou}


def draw(folder: Path, sheet: Sheet, figures: Mapping[str, Any]) -> list[str]:
    """Write the plots; returns their names."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    fake = sheet.labels != Label.REAL
    grid, axes = pyplot.subplots(2, 2, figsize=(9, 8), layout="constrained")
    ConfusionMatrixDisplay.from_predictions(
        sheet.labels, sheet.judged, labels=list(Label), display_labels=[label.title for label in Label], ax=axes[0, 0], colorbar=False
    )
    if 0 < fake.sum() < len(fake):
        RocCurveDisplay.from_predictions(fake, sheet.fake, ax=axes[0, 1], name="real against fake", plot_chance_level=True)
        bins = min(10, max(2, len(fake) // 5))
        axes[1, 0].plot(*calibration_curve(fake, sheet.fake, n_bins=bins)[::-1], marker="o")
        axes[1, 0].plot([0, 1], [0, 1], "k:")
    axes[1, 0].set(xlabel="probability of fake", ylabel="share that is fake", xlim=(0, 1), ylim=(0, 1))
    tampered = sheet.rows(Label.TAMPERED)
    axes[1, 1].hist([sheet.column("iou")[tampered], sheet.column("oracle_iou")[tampered]], bins=np.linspace(0, 1, 11), label=["end to end", "oracle"])
    axes[1, 1].set(xlabel="mask IoU", ylabel="tampered pictures")
    axes[1, 1].legend(frameon=False)
    grid.savefig(folder / "plots.png", dpi=100)
    pyplot.close(grid)
    if len(figures) == 1:
        return ["plots.png"]
    bars, axis = pyplot.subplots(figsize=(10, 3.5), layout="constrained")
    table = {name or "none": strip(one) for name, one in figures.items()}
    for i, figure in enumerate(next(iter(table.values()))):
        axis.bar(np.arange(len(table)) + 0.2 * i, [row[figure] for row in table.values()], width=0.2, label=figure)
    axis.set_xticks(np.arange(len(table)) + 0.3, list(table), rotation=30, ha="right")
    axis.set_ylim(0, 1.1)
    axis.legend(frameon=False, ncols=4)
    bars.savefig(folder / "robustness.png", dpi=100)
    pyplot.close(bars)
    return ["plots.png", "robustness.png"]


def cell(row: Mapping[str, float], name: str) -> str:
    """Three decimals, or nothing for a figure that this row has not."""
    return f"{row[name]:.3f}" if name in row else ""
