"""Structured texts: written, read back, and read from what a model may really say."""

from __future__ import annotations

import json

import pytest

from model.types import Label
from utils.data.describe import MANIPULATIONS, describe
from utils.data.explanation import ASPECTS, Explanation, parse
from utils.data.tamper import KINDS

FULL = Explanation("splicing", "upper left, small", "a boat", {"lighting": "from the left", "edges": "too sharp"})


def test_what_is_written_is_read_back() -> None:
    assert str(FULL) == "Type: splicing. Areas: upper left, small. Tampered Content: a boat. Visual Inconsistencies: lighting: from the left; edges: too sharp."
    assert parse(str(FULL)) == FULL
    assert FULL.complete
    assert Explanation(**json.loads(json.dumps(FULL.to_dict()))) == FULL


@pytest.mark.parametrize(
    "text",
    [
        "**Type:** splicing\n**Areas:** upper left, small\n**Tampered Content:** a boat\n**Visual Inconsistencies:**\n- lighting: from the left\n- edges: too sharp",
        "type: splicing. area: upper left, small. tampered contents: a boat. visual inconsistency: Lighting: from the left; Edges: too sharp",
        "1. Type: splicing\n2. Areas: upper left, small\n3. Tampered Content: a boat\n4. Visual Inconsistencies:\n  * lighting: from the left.\n  * edges: too sharp.",
    ],
)
def test_spelling_and_markdown_do_not_matter(text: str) -> None:
    assert parse(text) == FULL


def test_what_belongs_nowhere_is_kept_apart() -> None:
    made = parse("Well. Type: real. Areas: none. Type: again. Visual Inconsistencies: none at all")
    assert (made.type, made.areas, made.content) == ("real", "none", "")
    assert made.inconsistencies == {"general": "none at all"}
    assert made.unread == "Well again"
    assert not made.complete
    assert parse("It just looks fine.") == Explanation(unread="It just looks fine")
    assert parse("") == Explanation()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_true_words(kind: str) -> None:
    made = {"file": "tampered/1.jpg", "kind": kind, "area": 0.1, "centre": [0.1, 0.9]}
    told = describe(Label.TAMPERED, made)
    assert told.type == MANIPULATIONS[kind].type
    assert "lower left" in told.areas
    assert "medium" in told.areas
    assert told.inconsistencies.keys() <= set(ASPECTS)
    assert parse(str(told)) == told


def test_wording_varies_and_depends_on_the_file_only() -> None:
    texts = [str(describe(Label.TAMPERED, {"file": f"tampered/{i}.jpg", "kind": "copy_move", "area": 0.1, "centre": [0.5, 0.5]})) for i in range(40)]
    assert len(set(texts)) >= 12
    assert texts[3] == str(describe(Label.TAMPERED, {"file": "tampered/3.jpg", "kind": "copy_move", "area": 0.1, "centre": [0.5, 0.5]}))


def test_real_and_synthetic_have_their_own() -> None:
    real, gan, ai = (
        describe(label, {"file": "a.jpg", "generator": name})
        for label, name in ((Label.REAL, ""), (Label.FULL_SYNTHETIC, "esrgan-slim-x2"), (Label.FULL_SYNTHETIC, "flux2"))
    )
    assert (real.type, real.areas) == ("real", "none")
    assert gan.areas == ai.areas == "the whole image"
    assert "network" in gan.content
    assert gan.content != ai.content
    assert all(told.complete for told in (real, gan, ai))
