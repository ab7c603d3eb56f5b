"""The figures are scikit-simple on cases done by hand, and the loop sees every readable image once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.checkpoint import load_for_training
from model.types import Label
from tests.tiny import build_tiny_lisa, build_tiny_set
from utils.data.dataset import SidaDataset, SidaProcessor
from utils.data.sid_set import read_split
from utils.eval.evaluate import evaluate
from utils.eval.metrics import Scores
from utils.eval.report import format_report


def logits_for(labels: list[int]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(labels), 3).float()


def test_detection_by_hand() -> None:
    scores = Scores()
    truth, judged = [0, 0, 1, 2, 2, 2], [0, 2, 1, 2, 2, 0]
    scores.update(logits_for(judged), torch.tensor(truth), [torch.zeros(0, 1, 1)] * 3 + [torch.ones(1, 2, 2)] * 3, [torch.zeros(0, 1, 1)] * 3 + [torch.ones(1, 2, 2)] * 3)
    got = scores.compute()
    assert got["accuracy"] == pytest.approx(4 / 6)
    assert got["confusion_matrix"] == [[1, 0, 1], [0, 1, 0], [1, 0, 2]]
    assert got["per_class"]["tampered"] == {"precision": pytest.approx(2 / 3), "recall": pytest.approx(2 / 3), "f1": pytest.approx(2 / 3), "support": 3}
    assert got["images"] == 6


def test_a_missed_tampering_costs_its_mask_end_to_end() -> None:
    scores, mask = Scores(), torch.ones(1, 4, 4)
    scores.update(logits_for([2, 0]), torch.tensor([2, 2]), [mask, mask], [mask, mask])
    got = scores.compute()
    assert (got["giou"], got["f1"], got["ciou"]) == (1, 1, 1)
    assert (got["giou_end2end"], got["f1_end2end"]) == (0.5, 0.5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_iou_and_f1_by_definition(seed: int, density: float, guessed: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    truth = (torch.rand(1, 7, 9, generator=generator) < density).float()
    mask = torch.where(torch.rand(1, 7, 9, generator=generator) < guessed, 1.0, -1.0)
    scores = Scores()
    scores.update(logits_for([2]), torch.tensor([2]), [mask], [truth])
    got, a, b = scores.compute(), mask > 0, truth > 0.5
    union = int((a | b).sum())
    assert got["giou"] == pytest.approx(int((a & b).sum()) / union if union else 1.0)
    assert got["f1"] == pytest.approx(2 * int((a & b).sum()) / int(a.sum() + b.sum()) if union else 1.0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("eval")
    build_tiny_lisa(root / "lisa")
    build_tiny_set(root / "set", per_class=3, splits=("validation",))
    return root


def figures(place: Path, batch_size: int, **options: object) -> dict:
    torch.manual_seed(0)
    model, tokenizer = load_for_training(place / "lisa", "sida")
    dataset = SidaDataset(read_split(place / "set", "validation"), SidaProcessor(tokenizer, model.config), replace_unreadable=False)
    return evaluate(model, dataset, batch_size=batch_size, device="cpu", dtype=torch.float32, **options)


def test_any_batch_size_gives_the_same(place: Path, tmp_path: Path) -> None:
    one, four = figures(place, 1), figures(place, 4, pictures_dir=tmp_path)
    assert one["images"] == four["images"] == 9
    for name in ("accuracy", "giou", "ciou", "legacy_gIoU", "legacy_auc"):
        assert one[name] == pytest.approx(four[name], abs=1e-5), name
    assert len(list(tmp_path.glob("tampered_*.jpg"))) == 3
    report = format_report(four)
    assert "9 images, 0 unreadable" in report
    assert all(label.title in report for label in Label)


def test_unreadable_images_are_counted_not_guessed(place: Path, tmp_path: Path) -> None:
    build_tiny_set(tmp_path / "set", per_class=2, splits=("validation",))
    (tmp_path / "set" / "validation" / "real" / "real_0.png").write_bytes(b"not a picture")
    (tmp_path / "lisa").symlink_to(place / "lisa")
    got = figures(tmp_path, 2)
    assert got["images"] == 5
    assert [Path(path).name for path in got["unreadable"]] == ["real_0.png"]


def test_bad_batch_size(place: Path) -> None:
    with pytest.raises(ValueError, match="batch_size is 0"):
        figures(place, 0)
