"""Figures from lines equal scikit-learn's on random cases, empty and full masks included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, jaccard_score, roc_auc_score

from model.types import Label
from utils.eval.judging import Line, _localize
from utils.eval.metrics import auroc, macro_f1
from utils.eval.summary import compare, summarize


def line(i: int, label: int, logits: list[float], **more: object) -> Line:
    return Line(f"{i:03d}", f"{i}.png", "", label, logits=logits, predicted=int(np.argmax(logits)), area=0.25, **more)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 0.2, 0.7, 1]), st.sampled_from([0, 0.3, 0.9, 1]), st.booleans())
def test_masks(seed: int, density: float, guessed: float, found: bool) -> None:
    rng = np.random.default_rng(seed)
    truth, logits = rng.random((9, 7)) < density, np.where(rng.random((9, 7)) < guessed, 1.0, -1.0) * rng.random((9, 7))
    got = line(0, 2, [0.0, 0.0, 1.0])
    mask = (logits > 0) & found
    _localize(got, logits, mask, truth, (1.0, 2.0))
    for predicted, iou, f1 in ((mask, got.iou, got.f1), (logits > 0, got.oracle_iou, got.oracle_f1)):
        assert iou == pytest.approx(jaccard_score(truth.ravel(), predicted.ravel(), zero_division=1.0), abs=1e-6)
        assert f1 == pytest.approx(f1_score(truth.ravel(), predicted.ravel(), zero_division=1.0), abs=1e-6)
    if 0 < truth.sum() < truth.size:
        assert got.oracle_auroc == pytest.approx(roc_auc_score(truth.ravel(), logits.ravel()), abs=1e-6)
    else:
        assert got.oracle_auroc is None


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_detection(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(40, 3))
    labels = np.concatenate([[0, 1, 2], rng.integers(0, 3, 37)])
    got = summarize([line(i, int(label), row.tolist()) for i, (label, row) in enumerate(zip(labels, logits, strict=True)) if label != 2], ["end2end"], intervals=False)
    rows = labels != 2
    probs = np.exp(logits[rows]) / np.exp(logits[rows]).sum(axis=1, keepdims=True)
    assert got["detection"]["real_vs_fake"]["auroc"] == pytest.approx(roc_auc_score(labels[rows] == 1, 1 - probs[:, 0]))
    assert got["detection"]["one_vs_rest"]["tampered"] is None
    assert got["detection"]["accuracy"] == pytest.approx((logits[rows].argmax(axis=1) == labels[rows]).mean())
    assert got["false_mask_area"] == 0.25


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 3, 40]), st.sampled_from([1, 3]), st.sampled_from([0.01, 1, 1000]))
def test_what_is_resampled_is_scikit_learns(seed: int, count: int, classes: int, scale: float) -> None:
    """Also when a class is missing, scores tie or are no probabilities."""
    rng = np.random.default_rng(seed)
    labels, judged = rng.integers(classes, size=(2, count))
    assert macro_f1(labels, judged) == pytest.approx(f1_score(labels, judged, labels=[0, 1, 2], average="macro", zero_division=0), abs=1e-6)
    scores = scale * rng.normal(size=count).round(1)
    if 0 < (labels > 0).sum() < count:
        assert auroc(labels > 0, scores) == pytest.approx(roc_auc_score(labels > 0, scores), abs=1e-6)
    else:
        assert np.isnan(auroc(labels > 0, scores))


def tampered(i: int, iou: float, found: bool = True) -> Line:
    more = {"iou": iou * found, "f1": iou * found, "oracle_iou": iou, "oracle_f1": iou, "overlap": [int(4 * iou * found), 4], "oracle_overlap": [int(4 * iou), 4]}
    return line(i, 2, [0.0, 0.0, 1.0] if found else [1.0, 0.0, 0.0], f1_at=[iou] * 18 + [1.0], oracle_auroc=0.75, legacy=[1.0, 2.0], origin={"generator": "x"}, **more)


def test_protocols_by_hand() -> None:
    lines = [line(0, 0, [2.0, 0.0, 0.0]), line(1, 1, [0.0, 2.0, 0.0]), tampered(2, 0.5), tampered(3, 1.0, found=False)]
    lines.append(Line("4", "4.png", "", 0, error="cannot be read"))
    got = summarize(lines, ["end2end", "oracle", "legacy"])
    assert (got["images"], got["unreadable"]) == (4, ["4.png"])
    assert got["localization"]["end2end"] == {"f1": 0.25, "giou": 0.25, "ciou": 0.25, "pixel_auroc": (0.75 + 0.5) / 2}
    assert got["localization"]["oracle"] | {"best_f1": 1.0, "best_threshold": 0.95} == got["localization"]["oracle"]
    assert got["localization"]["oracle"]["giou"] == 0.75
    assert got["legacy"]["legacy_cIoU"] == pytest.approx(0.5)
    assert got["by"]["generator"]["x"] == {"images": 2, "accuracy": 0.5, "called_fake": 0.5, "iou": 0.25}
    assert got["intervals"]["end2end iou"]["value"] == 0.25
    assert got["detection"]["confusion_matrix"][Label.TAMPERED] == [1, 0, 1]
    with pytest.raises(ValueError, match=r"none of the images could be read, e\.g\. \['4\.png'\]"):
        summarize(lines[-1:], ["oracle"])


def test_temperature_undoes_overconfidence() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2000, 3))
    labels = [int(rng.choice(3, p=np.exp(row) / np.exp(row).sum())) for row in logits]
    lines = [line(i, label, (4 * row).tolist()) for i, (label, row) in enumerate(zip(labels, logits, strict=True)) if label != 2]
    rows = [label != 2 for label in labels]
    assert sum(rows) == len(lines)
    every = [line(i, label, (4 * row).tolist()) if label != 2 else tampered(i, 0.5) for i, (label, row) in enumerate(zip(labels, logits, strict=True))]
    for one, row in zip(every, logits, strict=True):
        one.logits, one.predicted = (4 * row).tolist(), int(row.argmax())
    got = summarize(every, ["end2end"], intervals=False)["calibration"]
    assert got["temperature"] == pytest.approx(4, rel=0.15)
    assert got["after"]["ece"] < 0.05 < got["before"]["ece"]
    assert got["after"]["brier"] < got["before"]["brier"]


def test_compare() -> None:
    first = [line(i, 0, [1.0, 0.0, 0.0] if i % 2 else [0.0, 1.0, 0.0]) for i in range(40)]
    second = [line(i, 0, [1.0, 0.0, 0.0]) for i in range(10, 50)]
    got = compare(first, second)
    assert got["accuracy"]["images"] == 30
    assert got["accuracy"]["difference"] == 0.5
    assert got["accuracy"]["p"] < 0.01
    assert "iou" not in got
    with pytest.raises(ValueError, match="no picture in common"):
        compare(first[:5], second[20:])
