"""Explanations are held against the truth, the verdict and the mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model.types import Label
from utils.data.explanation import Explanation, parse
from utils.data.records import Record
from utils.eval.explanations import Said, blind, cells, class_of, columns, explained, points_at, summary
from utils.eval.judging import Line

TRUTH = "Type: splicing. Areas: a small area at the upper left. Tampered Content: a boat. Visual Inconsistencies: noise: it jumps."
REAL = "Type: real. Areas: none. Tampered Content: none. Visual Inconsistencies: noise: even."


def record(label: Label, text: str) -> Record:
    return Record(id=f"{label.title}/1.jpg", image=Path("1.jpg"), label=label, mask=None, description=text)


def said(text: str, judged: Label, named: Label | None = None, mask: np.ndarray | None = None) -> Said:
    return Said(judged, judged if named is None else named, parse(text), True, mask)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("upper left", [(0, 0)]),
        ("at the Top-Center and the bottom right", [(0, 1), (2, 2)]),
        ("the middle middle", [(1, 1)]),
        ("left", []),
        ("cupper left", []),
    ],
)
def test_cells(text: str, found: list[tuple[int, int]]) -> None:
    assert cells(text) == found


def test_what_a_type_means() -> None:
    assert class_of(Explanation(type="Real")) is Label.REAL
    assert class_of(Explanation(type="full synthetic")) is Label.FULL_SYNTHETIC
    assert class_of(Explanation(type="copy-move")) is Label.TAMPERED
    assert class_of(Explanation()) is None


def test_a_text_points_at_a_mask() -> None:
    mask = np.zeros((30, 30), bool)
    mask[:10, :12] = True  # ten columns in the upper left cell, two in the next
    assert points_at(parse(TRUTH), mask)
    assert points_at(Explanation(areas="upper centre"), mask)
    assert not points_at(Explanation(areas="lower right"), mask)
    assert not points_at(Explanation(areas="everywhere"), mask)


def test_each_figure() -> None:
    records = [record(Label.TAMPERED, TRUTH), record(Label.TAMPERED, TRUTH), record(Label.REAL, REAL), record(Label.REAL, REAL)]
    near = TRUTH.replace("upper left", "middle centre")
    far = TRUTH.replace("upper left", "lower centre").replace("splicing", "removal")
    values = columns([said(near, Label.TAMPERED), said(far, Label.TAMPERED), said(REAL, Label.REAL), said(TRUTH, Label.REAL, Label.TAMPERED)], records)
    nan = np.nan
    expected = {
        "parsed": [1, 1, 1, 1],
        "text and class head agree": [1, 1, 1, 0],
        "right class in words": [1, 1, 1, 0],
        "names an area on a real picture": [nan, nan, 0, 1],
        "manipulation right, of detected": [1, 0, nan, nan],
        "position within a cell, of detected": [1, 0, nan, nan],
        "position exact, of detected": [0, 0, nan, nan],
    }
    for name, column in expected.items():
        np.testing.assert_array_equal(values[name], column, err_msg=name)
    assert values["ROUGE-L"][2] == values["TF-IDF cosine"][2] == pytest.approx(1)
    assert values["ROUGE-L"][0] < 1
    table = summary(values, ["a", "b", "c", "d"])
    assert table["manipulation right, of detected"].value == 0.5
    assert table["parsed"].low == 1


def test_blind_says_the_commonest() -> None:
    train = [record(Label.TAMPERED, TRUTH)] * 2 + [record(Label.TAMPERED, TRUTH.replace("splicing", "removal"))] + [record(Label.REAL, REAL)]
    train.append(record(Label.FULL_SYNTHETIC, "Type: full synthetic. Areas: the whole image."))
    made = blind([said("", Label.TAMPERED), said("", Label.REAL)], train)
    assert [answer.told.type for answer in made] == ["splicing", "real"]
    assert [answer.named for answer in made] == [Label.TAMPERED, Label.REAL]


def test_silence_counts_as_wrong() -> None:
    values = columns([said("", Label.TAMPERED), said(REAL, Label.REAL)], [record(Label.TAMPERED, TRUTH), record(Label.REAL, REAL)])
    assert values["not empty"][0] == values["parsed"][0] == values["text and class head agree"][0] == values["manipulation right, of detected"][0] == 0


def test_a_truth_in_another_form_makes_nothing_right() -> None:
    values = columns([said("upper left, splicing", Label.TAMPERED)], [record(Label.TAMPERED, "upper left, splicing")])
    assert "manipulation right, of detected" not in values
    assert values["TF-IDF cosine"][0] == values["ROUGE-L"][0] == 0


def test_lines_of_an_evaluation() -> None:
    """Texts in lines count as in `columns`; a text that cannot be parsed is counted, a line without one is in no figure."""
    label = int(Label.TAMPERED)
    texts = [f"[CLS] The image is tampered [SEG] {TRUTH}", "[CLS] The image is tampered [SEG] mumble", None]
    lines = [Line(f"{i}", f"{i}.jpg", "", label, predicted=label, text=text, ended=True, reference=TRUTH if text else None) for i, text in enumerate(texts)]
    told = explained(lines)
    assert (told["images"], told["unparsed"]) == (2, 1)
    assert told["figures"]["manipulation right, of detected"]["value"] == 0.5
    assert 0.5 <= told["figures"]["ROUGE-L"]["value"] < 0.75
    assert explained(lines[2:]) == {}


def test_css_of_a_sentence_encoder(tmp_path: Path) -> None:
    """A random encoder: the same words are at 1, others below."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from utils.eval.explanations import css

    words = sorted({"[PAD]", "[UNK]", *TRUTH.replace(".", " .").replace(":", " :").split(), "mumble"})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(tmp_path)
    BertModel(BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)).save_pretrained(tmp_path)
    texts = [TRUTH, TRUTH.replace("splicing", "mumble mumble"), "mumble"]
    values = css([said(text, Label.TAMPERED) for text in texts], [record(Label.TAMPERED, TRUTH)] * 3, str(tmp_path))
    assert values[0] == pytest.approx(1, abs=1e-5)
    assert 0 < values[1] < 1 - 1e-4
    assert values[2] == 0  # nothing of it could be parsed
