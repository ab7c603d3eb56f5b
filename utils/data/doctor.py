"""What is wrong with a data set, before a model learns it.

    python -m utils.data.doctor PATH [--json FILE] [--harmonize OUT]

Missing, mis-sized, empty, full or grey masks; unreadable pictures; copies within and across splits; and label leaks: how well a picture's class
is told by its file alone (container, size, JPEG quality, EXIF, colour mode). Exits 1 when something serious was found, 0 otherwise.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.preprocessing import OrdinalEncoder
from sklearn.tree import DecisionTreeClassifier, export_text
from tqdm import tqdm

from model.types import Label
from utils.data.facts import FileFacts, inspect
from utils.data.records import Record
from utils.data.sources import list_splits, read_source
from utils.data.transforms import read_gray

SHOWN = 5
GREY_SHARE = 0.02  # of a mask's pixels between black and white that soft edges may have
FULL_SHARE = 0.98
ALIKE_BITS = 3  # of 64 by which perceptual hashes of copies may differ
ALIKE_LEVELS = 4.0  # mean grey levels by which their thumbnails may
LEAK_MARGIN = 0.15  # of balanced accuracy above chance
FOLDS = 5
MANY = 200  # pictures that share a piece of hash: flat ones, not copies
LEAKS: Mapping[str, Callable[[FileFacts], Sequence[object] | None]] = {  # None: the picture has no such thing
    "container": lambda facts: [facts.container],
    "size": lambda facts: [facts.width, facts.height],
    "JPEG quality": lambda facts: facts.quality and [facts.quality],
    "EXIF": lambda facts: [int(facts.exif)],
    "colour mode": lambda facts: [facts.mode],
}


@dataclass(frozen=True)
class Finding:
    """One sort of trouble, and where."""

    kind: str
    serious: bool
    message: str
    places: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = "".join(f"\n      {place}" for place in self.places[:SHOWN])
        more = f"\n      and {len(self.places) - SHOWN} more" if len(self.places) > SHOWN else ""
        return f"{'SERIOUS' if self.serious else 'note':>8}  {self.kind}: {self.message}{shown}{more}"


@dataclass(frozen=True)
class Examined:
    """A record, and what its file is like; None when it cannot be read, for `reason`."""

    split: str
    record: Record
    facts: FileFacts | None
    reason: str = ""

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return str(self.record.image)


def examine(split: str, record: Record) -> Examined:
    """Read one picture."""
    try:
        return Examined(split, record, inspect(record.image))
    except OSError as error:
        return Examined(split, record, None, str(error))


def diagnose(source: Path | str, workers: int = 4) -> tuple[list[Finding], list[Examined]]:
    """All findings of a data set, and every picture that was looked at."""
    findings, listed = [], []
    for split in list_splits(source):
        try:
            listed += [(split, record) for record in read_source(source, split, unmasked=True)]
        except (ValueError, FileNotFoundError) as error:
            findings.append(Finding("structure", True, str(error)))
    with ThreadPoolExecutor(workers) as pool:
        reading = pool.map(lambda pair: examine(*pair), listed)
        examined = list(tqdm(reading, total=len(listed), desc="examining", unit="picture", disable=not sys.stderr.isatty()))
        masks = list(pool.map(check_mask, examined))
    unreadable = [item for item in examined if item.facts is None]
    if unreadable:
        findings.append(Finding("unreadable", True, f"{len(unreadable)} pictures cannot be read whole", tuple(item.reason for item in unreadable)))
    findings += gather(finding for finding in masks if finding is not None)
    readable = [item for item in examined if item.facts is not None]
    findings += list(copies(readable))
    for split in dict.fromkeys(item.split for item in readable):
        findings += list(leaks(split, [item for item in readable if item.split == split]))
    return sorted(findings, key=lambda finding: not finding.serious), examined


def check_mask(item: Examined) -> Finding | None:
    """What is wrong with a tampered picture's mask."""
    record = item.record
    if record.label is not Label.TAMPERED or item.facts is None:
        return None
    if record.mask is None:
        return Finding("mask missing", True, "tampered pictures have no mask", (item.place,))
    try:
        gray = read_gray(record.mask)
    except (OSError, ValueError) as error:
        return Finding("mask unreadable", True, "masks cannot be read", (str(error),))
    size = (item.facts.height, item.facts.width)
    if gray.shape != size:
        return Finding("mask size", True, "masks differ in size from their picture", (f"{record.mask} is {gray.shape}, its picture {size} (height, width)",))
    white, grey = float((gray > 127).mean()), float(((gray > 0) & (gray < 255)).mean())
    if white == 0:
        return Finding("mask empty", True, "masks mark nothing", (str(record.mask),))
    if white > FULL_SHARE:
        return Finding("mask full", False, "masks mark everything", (str(record.mask),))
    if grey > GREY_SHARE:
        return Finding("mask grey", False, f"masks are grey in more than {GREY_SHARE:.0%} of their pixels", (f"{record.mask}: {grey:.0%}",))
    return None


def gather(findings: Iterable[Finding]) -> list[Finding]:
    """One finding of each kind, with all places; the message gets their number."""
    groups: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.kind].append(finding)
    out = []
    for kind, group in groups.items():
        places = tuple(place for finding in group for place in finding.places)
        out.append(Finding(kind, group[0].serious, f"{len(group)} {group[0].message}", places))
    return out


def copies(items: Sequence[Examined]) -> Iterator[Finding]:
    """Pictures that are the same file, or look the same: serious across splits, and within one when their classes differ and the files do not."""
    pairs: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for a, b in alike(items):
        same = a.facts.sha256 == b.facts.sha256
        if a.split != b.split:
            kind, serious = "copies across splits", True
        elif same:
            kind, serious = "copies within a split", a.record.label is not b.record.label
        else:
            continue  # a photograph and its tampered self look alike
        pairs[kind, serious].append(f"{a.place} and {b.place}{'' if same else ' look the same'}")
    for (kind, serious), places in pairs.items():
        classes = " of different classes" if serious and "within" in kind else ""
        yield Finding(kind, serious, f"{len(places)} pairs{classes}", tuple(places))


def alike(items: Sequence[Examined]) -> Iterator[tuple[Examined, Examined]]:
    """Pairs whose files are equal, or whose perceptual hashes and thumbnails nearly are.

    Hashes that differ in at most three bits agree in one of their four quarters, so only pictures that share a quarter are compared.
    """
    buckets: dict[object, list[int]] = defaultdict(list)
    for i, item in enumerate(items):
        buckets[item.facts.sha256].append(i)
        for quarter in range(4):
            buckets[quarter, item.facts.phash >> 16 * quarter & 0xFFFF].append(i)
    found = set()
    for key, members in buckets.items():
        if isinstance(key, tuple) and len(members) > MANY:
            continue
        for k, i in enumerate(members):
            found |= {(i, j) for j in members[k + 1 :] if _same(items[i].facts, items[j].facts)}
    for i, j in sorted(found):
        yield items[i], items[j]


def _same(a: FileFacts, b: FileFacts) -> bool:
    if a.sha256 == b.sha256:
        return True
    if (a.phash ^ b.phash).bit_count() > ALIKE_BITS:
        return False
    return float(np.abs(a.thumbnail - b.thumbnail).mean()) < ALIKE_LEVELS and float(a.thumbnail.std()) > ALIKE_LEVELS


def leaks(split: str, items: Sequence[Examined]) -> Iterator[Finding]:
    """What of the class the files tell: a small decision tree's cross-validated balanced accuracy, and its rule."""
    for name, features in LEAKS.items():
        pairs = [(list(map(str, row)), int(item.record.label)) for item in items if (row := features(item.facts)) is not None]
        labels = np.array([label for _, label in pairs])
        present, counts = np.unique(labels, return_counts=True)
        if len(present) < 2 or counts.min() < FOLDS:
            if len(pairs) == len(items):
                yield Finding("leaks", False, f"split {split} has too few pictures of each class to look for a leak by {name}")
            continue
        raw = np.array([row for row, _ in pairs])
        numeric = all(value.isdigit() for value in raw.ravel())
        table = raw.astype(float) if numeric else OrdinalEncoder().fit_transform(raw)
        tree = DecisionTreeClassifier(max_depth=3, min_samples_leaf=2, class_weight="balanced", random_state=0)
        said = cross_val_predict(tree, table, labels, cv=StratifiedKFold(FOLDS, shuffle=True, random_state=0))
        accuracy, chance = float(balanced_accuracy_score(labels, said)), 1 / len(present)
        if accuracy >= chance + LEAK_MARGIN + 0.5 / np.sqrt(len(labels)):  # a few pictures are told apart by luck
            rule = _rule(tree.fit(table, labels), name, raw, numeric)
            yield Finding("label leak", True, f"in split {split}, {name} alone tells the class of {accuracy:.0%} of pictures (chance {chance:.0%})", rule)


def _rule(tree: DecisionTreeClassifier, name: str, raw: np.ndarray, numeric: bool) -> tuple[str, ...]:
    """The tree in words."""
    columns = ["width", "height"] if name == "size" else [name]
    text = export_text(tree, feature_names=columns, class_names=[Label(int(label)).title for label in tree.classes_], decimals=1)
    if not numeric:
        values = sorted(set(raw.ravel()))
        text = f"({', '.join(f'{value} is {i}' for i, value in enumerate(values))})\n{text}"
    return tuple(line for line in text.splitlines() if line.strip())


def table(findings: Sequence[Finding], examined: Sequence[Examined]) -> str:
    """For people."""
    splits = {split: sum(item.split == split for item in examined) for split in dict.fromkeys(item.split for item in examined)}
    serious = sum(finding.serious for finding in findings)
    head = ", ".join(f"{split}: {count} pictures" for split, count in splits.items())
    return "\n".join([head, *map(str, findings), f"{serious} serious, {len(findings) - serious} other findings"])


def main(argv: Sequence[str] | None = None) -> int:
    """Diagnose, print, write; returns 1 when something serious was found."""
    from utils.data.harmonize import harmonize

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder, manifest or hub name, see utils/data/sources.py")
    parser.add_argument("--json", type=Path, help="write the findings here")
    parser.add_argument(
        "--harmonize", type=Path, metavar="OUT", help="write a copy whose files tell nothing of the class"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the copy's qualities")
    parser.add_argument("--workers", type=int, default=4)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    findings, examined = diagnose(args.source, args.workers)
    sys.stdout.write(table(findings, examined) + "\n")
    if args.json:
        args.json.write_text(json.dumps([asdict(finding) for finding in findings], indent=1) + "\n")
    if args.harmonize:
        sys.stdout.write(harmonize([(item.split, item.record) for item in examined if item.facts], args.harmonize, args.seed) + "\n")
    return int(any(finding.serious for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
