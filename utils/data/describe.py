"""What is truly to be said about a picture whose making is known."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model.types import Label
from utils.data.explanation import Explanation

ROWS, COLUMNS = ("upper", "middle", "lower"), ("left", "centre", "right")
SIZES = {"small": 0.06, "medium": 0.15, "large": 1.0}  # largest share of the picture
AREAS = ("a {size} area at the {position}", "{position}, {size}", "the {position} of the image, {size} in size")


@dataclass(frozen=True)
class Manipulation:
    """A manipulation's type and, in several wordings each, what it did and what it leaves to see."""

    type: str
    content: Sequence[str]
    inconsistencies: Mapping[str, Sequence[str]]  # aspect -> wordings


SMEAR = {
    "texture": ("a smear without texture", "the surface is smeared and empty"),
    "noise": ("no noise where the rest has some", "the noise of the picture stops here"),
}
REMOVED = (
    "an object or a piece of background was removed and the hole filled from its border",
    "the original content was erased and painted over from around it",
)
MANIPULATIONS = {
    "copy_move": Manipulation(
        "copy-move",
        ("a part of the same picture was copied here", "this content also appears elsewhere in the picture"),
        {
            "edges": ("lines do not continue across the border", "the border cuts through structures"),
            "texture": ("repeated structure", "the same pattern occurs twice"),
        },
    ),
    "splice_photo": Manipulation(
        "splicing",
        ("a part of another photograph was pasted here", "content from another photograph was inserted"),
        {
            "resolution": ("sharpness differs from the surroundings", "another sharpness than around it"),
            "noise": ("the noise level jumps", "noise differs from the rest"),
        },
    ),
    "splice_ai": Manipulation(
        "splicing",
        ("a part of a generated picture was pasted here", "content made by a generator was inserted"),
        {
            "texture": ("an artificial texture", "texture differs from the surroundings"),
            "lighting": ("light differs from the surroundings", "another light than around it"),
        },
    ),
    "inpaint_telea": Manipulation("removal", REMOVED, SMEAR),
    "inpaint_ns": Manipulation("removal", REMOVED, SMEAR),
    "gan_patch": Manipulation(
        "regeneration",
        ("the content was painted again by a network", "a network repainted what was here"),
        {
            "texture": ("fine texture became a regular pattern", "a regular fine pattern instead of texture"),
            "resolution": ("detail is invented", "detail differs in fineness"),
        },
    ),
    "seamless_clone": Manipulation(
        "splicing",
        ("a part of another photograph was blended in", "content from another photograph was melted into the picture"),
        {
            "texture": ("texture differs although the border is smooth", "another texture behind a smooth border"),
            "noise": ("the noise level changes", "noise differs from the rest"),
        },
    ),
    "retouch_light": Manipulation(
        "retouching",
        ("the light was changed", "brightness and contrast were edited"),
        {
            "lighting": ("brightness jumps at the border", "contrast differs from the surroundings"),
            "edges": ("a border of light without a cause", "a soft outline of changed light"),
        },
    ),
    "retouch_blur": Manipulation(
        "retouching",
        ("the surface was smoothed", "detail was blurred away"),
        {"resolution": ("detail is missing", "softer than its surroundings"), "noise": ("noise is missing", "less noise than around it")},
    ),
    "retouch_colour": Manipulation(
        "retouching",
        ("the colour was changed", "hue and saturation were edited"),
        {
            "colour": ("hue jumps at the border", "saturation differs from the surroundings"),
            "edges": ("a border of colour without a cause", "a soft outline of changed colour"),
        },
    ),
}
SYNTHETIC = {
    "esrgan": ("every detail was painted by a super-resolution network", "a network repainted a whole photograph"),
    "": ("the whole scene was generated from a text", "a generator painted the whole scene"),
}
SYNTHETIC_SIGNS = {
    "texture": ("fine texture follows a regular pattern", "surfaces show a regular artificial texture"),
    "noise": ("the noise of a camera is missing", "no camera noise"),
}
REAL_SIGNS = {
    "lighting": ("consistent", "consistent over the whole image"),
    "noise": ("even over the whole image", "the same everywhere"),
    "edges": ("natural", "continuous and natural"),
}


def position(x: float, y: float) -> str:
    """Cell of a 3 x 3 grid for a point given in 0..1, e.g. "upper left"."""
    return f"{ROWS[min(2, int(y * 3))]} {COLUMNS[min(2, int(x * 3))]}"


def describe(label: Label, made: Mapping[str, object]) -> Explanation:
    """What was done and what it leaves to see; `made` is the picture's line of SID_Mini's manifest. Its file name picks the wording."""
    key = str(made["file"])
    if label is Label.REAL:
        return Explanation("real", "none", _pick(("nothing was changed", "none"), key), _word(REAL_SIGNS, key))
    if label is Label.FULL_SYNTHETIC:
        content = next(texts for name, texts in SYNTHETIC.items() if str(made["generator"]).startswith(name))
        return Explanation("full synthetic", "the whole image", _pick(content, key), _word(SYNTHETIC_SIGNS, key))
    done = MANIPULATIONS[str(made["kind"])]
    size = next(name for name, most in SIZES.items() if float(made["area"]) < most)
    areas = _pick(AREAS, key).format(size=size, position=position(*made["centre"]))
    return Explanation(done.type, areas, _pick(done.content, key), _word(done.inconsistencies, key))


def _pick(wordings: Sequence[str], key: str) -> str:
    return wordings[zlib.crc32(f"{key},{wordings[0]}".encode()) % len(wordings)]


def _word(aspects: Mapping[str, Sequence[str]], key: str) -> dict[str, str]:
    return {aspect: _pick(wordings, key) for aspect, wordings in aspects.items()}
