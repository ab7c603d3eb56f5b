"""The figures under legacy_* names equal what the original's validate() computed."""

from __future__ import annotations

import pytest
import torch

from model.types import Label
from tests.parity import golden
from utils.eval.metrics import Scores

NPZ, WANT = golden.load_npz("validate_inputs"), golden.load_json("validate")
LOGITS, LABELS, TRUTHS, PREDICTIONS = (torch.from_numpy(NPZ[name]) for name in ("logits", "labels", "gts", "preds"))


def score(rows: list[int], batch_size: int) -> dict:
    scores = Scores()
    for start in range(0, len(rows), batch_size):
        part = torch.tensor(rows[start : start + batch_size])
        scores.update(LOGITS[part], LABELS[part], list(PREDICTIONS[part][:, None]), list(TRUTHS[part][:, None]))
    return scores.compute()


def rows_of(case: str) -> list[int]:
    rows = list(range(len(LABELS)))
    if case == "tampered_only":
        rows = [i for i in rows if LABELS[i] == Label.TAMPERED]
    if case in ("no_empty", "tampered_only"):
        empty = [i for i in rows if LABELS[i] == Label.TAMPERED and TRUTHS[i].int().sum() == 0 and (PREDICTIONS[i] > 0).sum() == 0]
        rows = [i for i in rows if i not in empty]
    return rows


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("case", ["all", "no_empty", "tampered_only"])
def test_legacy_figures(case: str, batch_size: int) -> None:
    want, got = WANT[case]["scalars"], score(rows_of(case), batch_size)
    assert got["legacy_accuracy"] == pytest.approx(want["val/accuracy"], rel=1e-6)
    assert got["legacy_gIoU"] == pytest.approx(want["val/giou"], rel=1e-6)
    assert got["legacy_cIoU"] == pytest.approx(want["val/ciou"], rel=1e-6)
    assert got["legacy_pixel_accuracy"] == pytest.approx(want["val/pixel_accuracy"], rel=1e-6)
    assert got["legacy_f1"] == pytest.approx(want["val/f1_score"], rel=1e-6)
    assert got["legacy_auc"] == pytest.approx(want["val/auc_approx"], rel=1e-6)
    for label, name in zip(Label, ("real", "full synthetic", "tampered"), strict=True):
        for figure in ("precision", "recall", "f1"):
            assert got["per_class"][label.title][figure] == pytest.approx(want[f"val/{name}_{figure}"], rel=1e-6, abs=1e-9)


def test_without_tampered_images() -> None:
    """The original crashes; ours says that there is nothing to localize."""
    got = score([i for i in range(len(LABELS)) if LABELS[i] == Label.REAL], 1)
    assert "giou" not in got
    assert got["legacy_cIoU"] == 0.0
