"""SID_Set as the authors' drive lays it out:

    {split}/{real,full_synthetic,tampered}/<name>.<jpg, png, ...>
    {split}/masks/<stem of a tampered image>_mask.png
    {split}/description/{real,full_synthetic,tampered}_GT.json      {file name: text}, optional
    {split}/manifest.jsonl                                          {"file": "<class>/<name>", "source", "kind", "generator", ...}, optional: SID_Mini's
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from model.tokens import CLS_TOKEN, SEG_TOKEN
from model.types import Label
from utils.data.records import Record
from utils.data.transforms import IMAGE_SUFFIXES

log = logging.getLogger(__name__)

ORIGIN = ("source", "kind", "generator")
SHOWN = 10  # names listed in a warning


def read_split(root: Path | str, split: str, *, descriptions: bool = False, strict: bool = False, unmasked: bool = False) -> list[Record]:
    """All records of one split, class by class, sorted by file name.

    Tampered images without a mask are skipped with a warning, or kept if `unmasked`; descriptions of unknown files are skipped. `strict`
    makes both a ValueError. Raises FileNotFoundError for a missing folder, ValueError for an empty class or a broken JSON file.
    """
    folder = _split_folder(Path(root), split)
    origins = _origins(folder / "manifest.jsonl")
    records = []
    for label in Label:
        images = _images(folder / label.title)
        masks = _masks(folder, images, strict, unmasked) if label is Label.TAMPERED else {}
        texts = _descriptions(folder, label, images, strict) if descriptions else {}
        kept = [image for image in images if label is not Label.TAMPERED or unmasked or image.name in masks]
        ids = [f"{label.title}/{image.name}" for image in kept]
        records += [Record(i, image, label, masks.get(image.name), texts.get(image.name), origins.get(i, {})) for i, image in zip(ids, kept, strict=True)]
    return records


def _split_folder(root: Path, split: str) -> Path:
    if (root / split).is_dir():
        return root / split
    if not root.is_dir():
        raise FileNotFoundError(f"no data set folder {root}: expected a folder holding {split}/{{real,full_synthetic,tampered,masks}}")
    if _is_split(root):
        raise FileNotFoundError(f"no split {split!r} in {root}, which is itself the split {root.name!r}: give its parent {root.parent}")
    raise FileNotFoundError(f"no split {split!r} in {root}: it holds {list_splits(root) or 'no split at all'}")


def list_splits(root: Path) -> list[str]:
    """Names of the splits in the folder `root`."""
    return sorted(child.name for child in root.iterdir() if _is_split(child))


def _is_split(folder: Path) -> bool:
    return any((folder / label.title).is_dir() for label in Label)


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no class folder {folder}: each split needs {[label.title for label in Label]}")
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."))
    if not images:
        raise ValueError(f"no picture in {folder}: expected at least one file ending in {', '.join(IMAGE_SUFFIXES)}")
    return images


def _origins(manifest: Path) -> dict[str, dict[str, str]]:
    """Record id -> what its picture was made from and by."""
    if not manifest.is_file():
        return {}
    rows = map(json.loads, manifest.read_text(encoding="utf-8").splitlines())
    return {row["file"]: {name: str(row[name]) for name in ORIGIN if row.get(name)} for row in rows}


def _masks(folder: Path, images: list[Path], strict: bool, unmasked: bool) -> dict[str, Path]:
    """Image file name -> mask, for the images that have one."""
    if unmasked:
        return {image.name: mask for image in images if (mask := folder / "masks" / f"{image.stem}_mask.png").is_file()}
    if not (folder / "masks").is_dir():
        raise FileNotFoundError(f"no folder {folder / 'masks'}: tampered images need masks/<stem>_mask.png")
    present = {path.name: path for path in (folder / "masks").iterdir()}
    masks = {image.name: present[name] for image in images if (name := f"{image.stem}_mask.png") in present}
    missing = [image.name for image in images if image.name not in masks]
    if missing:
        _complain(f"{len(missing)} of {len(images)} tampered images in {folder} have no masks/<stem>_mask.png and are skipped", missing, strict)
    if not masks:
        raise ValueError(f"none of the {len(images)} tampered images in {folder} has a mask: expected masks/{images[0].stem}_mask.png and so on")
    return masks


def _descriptions(folder: Path, label: Label, images: list[Path], strict: bool) -> dict[str, str]:
    """Image file name -> text."""
    path = folder / "description" / f"{label.title}_GT.json"
    if not path.is_file():
        log.warning("no %s: %s images of this split have no descriptions", path, label.title)
        return {}
    try:
        texts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError say the position
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    _check_texts(path, texts)
    unknown = sorted(texts.keys() - {image.name for image in images})
    if unknown:
        _complain(f"{len(unknown)} of {len(texts)} entries of {path} name no image in {folder / label.title}", unknown, strict)
    return texts


def _check_texts(path: Path, texts: object) -> None:
    wrong = [name for name, text in texts.items() if not isinstance(text, str)] if isinstance(texts, dict) else ["the file itself"]
    if wrong:
        raise ValueError(f"{path}: expected an object {{file name: text}}, which does not hold for {wrong[0]!r}")
    for name, text in texts.items():
        for token in (CLS_TOKEN, SEG_TOKEN):  # the network reads its class or a mask at each of them
            if token in text:
                raise ValueError(f"{path}: the text of {name!r} contains {token}, which has a meaning of its own: remove it")


def _complain(message: str, names: list[str], strict: bool) -> None:
    shown = names if strict else names[:SHOWN]
    message = f"{message}: {', '.join(shown)}{', ...' if len(shown) < len(names) else ''}"
    if strict:
        raise ValueError(message)
    log.warning(message)
