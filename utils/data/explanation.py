"""The structured text of the description stage: Type, Areas, Tampered Content, Visual Inconsistencies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Any

TITLES = {"type": "Type", "areas": "Areas", "content": "Tampered Content", "inconsistencies": "Visual Inconsistencies"}
ASPECTS = ("lighting", "edges", "resolution", "noise", "texture", "colour", "shadows", "perspective", "consistency")
HEADING = re.compile(r"(?:^|(?<=[.;:\n*]))[\s\d*#.)-]*([A-Za-z][A-Za-z ]{2,24}?)[\s*]*:")  # "Type:", "**Visual Inconsistencies:**", "- Areas :"


@dataclass(frozen=True)
class Explanation:
    """A description's fields as plain text, "" or {} for what it does not say; `unread` is what belongs to no field."""

    type: str = ""
    areas: str = ""
    content: str = ""
    inconsistencies: Mapping[str, str] = field(default_factory=dict)  # aspect, e.g. "lighting" -> what is wrong with it
    unread: str = ""

    @property
    def complete(self) -> bool:
        """Whether every field was found and nothing was left over."""
        return bool(self.type and self.areas and self.content and self.inconsistencies) and not self.unread

    def __str__(self) -> str:
        aspects = "; ".join(f"{aspect}: {text}" for aspect, text in self.inconsistencies.items())
        said = ((TITLES["type"], self.type), (TITLES["areas"], self.areas), (TITLES["content"], self.content), (TITLES["inconsistencies"], aspects))
        return " ".join(f"{title}: {text}." for title, text in said if text)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"inconsistencies": dict(self.inconsistencies)}


def parse(text: str) -> Explanation:
    """The fields of `text`. Markdown, line breaks, upper and lower case and misspelled headings do not matter; nothing is ever raised."""
    fields: dict[str, str] = {}
    aspects: dict[str, str] = {}
    lead, unread, current, start = "", [], "", 0
    for heading in (*_headings(text), None):
        piece = text[start : heading[1] if heading else len(text)].strip(" \n\t.;*#-")
        if not current:
            lead = piece
        elif current in ASPECTS:
            aspects[current] = piece
        elif current == "inconsistencies":
            if piece:
                aspects["general"] = piece
        elif current in fields:
            unread.append(piece)
        else:
            fields[current] = piece
        if heading:
            current, _, start = heading
    unread = [piece for piece in (lead, *unread) if piece]
    return Explanation(**fields, inconsistencies=aspects, unread=" ".join(unread))


def _headings(text: str) -> list[tuple[str, int, int]]:
    """(field or aspect, first character, first character of what it heads) of each heading."""
    names = {title.lower(): name for name, title in TITLES.items()} | {aspect: aspect for aspect in ASPECTS}
    found = []
    for match in HEADING.finditer(text):
        close = get_close_matches(match[1].lower().strip(), names, n=1, cutoff=0.75)
        if close:
            found.append((names[close[0]], match.start(), match.end()))
    return found
