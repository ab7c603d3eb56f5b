"""What is said about a picture whose making is known."""

from __future__ import annotations

from collections.abc import Mapping

from model.types import Label

ROWS, COLUMNS = ("upper", "middle", "lower"), ("left", "centre", "right")
DONE = {
    "copy_move": ("a part of the same picture was copied here", "repeated structure and edges that do not continue"),
    "splice_photo": ("a part of another photograph was pasted here", "sharpness, noise and light differ from the surroundings"),
    "splice_ai": ("a part of a generated picture was pasted here", "texture and light differ from the surroundings"),
    "inpaint_telea": ("something was removed and the hole filled from its border", "a smear without texture or noise"),
    "inpaint_ns": ("something was removed and the hole filled from its border", "a smear without texture or noise"),
    "gan_patch": ("the content was painted again by a network", "fine texture replaced by a regular pattern"),
    "seamless_clone": ("a part of another photograph was blended in", "texture differs although the border is smooth"),
    "retouch_light": ("the light was changed", "brightness and contrast jump at the border"),
    "retouch_blur": ("the surface was smoothed", "detail and noise are missing"),
    "retouch_colour": ("the colour was changed", "hue and saturation jump at the border"),
}


def position(x: float, y: float) -> str:
    """Cell of a 3 x 3 grid for a point given in 0..1, e.g. "upper left"."""
    return f"{ROWS[min(2, int(y * 3))]} {COLUMNS[min(2, int(x * 3))]}"


def describe(label: Label, made: Mapping[str, object]) -> str:
    """One sentence or two; `made` is the picture's line of SID_Mini's manifest."""
    if label is Label.REAL:
        return "Sharpness, noise and light are consistent over the whole picture."
    if label is Label.FULL_SYNTHETIC:
        return "The whole picture was painted by a network: fine texture follows a regular pattern."
    what, seen = DONE[str(made["kind"])]
    size = "small" if float(made["area"]) < 0.06 else "medium-sized" if float(made["area"]) < 0.15 else "large"
    return f"A {size} area at the {position(*made['centre'])}: {what}. Visible: {seen}."
