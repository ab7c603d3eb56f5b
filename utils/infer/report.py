"""A prediction as a record that can be filed. docs/report.schema.json documents every field; SCHEMA_VERSION names its version."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from model.config import SidaConfig
from model.types import Label
from utils.infer.pipeline import SidaPipeline
from utils.infer.prediction import Prediction
from utils.infer.provenance import describe

SCHEMA_VERSION = "1.1"
CAVEAT = "A statistical judgement, not proof. That nothing was detected does not show that a picture is authentic."
GENERATED = "Written by the model. It is not evidence: it may name things that are not in the picture."
SMALLEST = 64  # pixels of the short side: less leaves the encoders nothing to look at
SHRUNK = 8  # times the model's input: of a larger picture the traces are averaged away
RECOMPRESSED = 60  # JPEG quality below which they are quantised away
DIGITS = 4  # of probabilities
# odds of the verdict against its opposite, calibrated, with even priors: the usual scale of forensic reports
BANDS = ((1000.0, "very strong"), (100.0, "strong"), (10.0, "moderate"), (0.0, "weak"))


@dataclass(frozen=True)
class Rules:
    """When a picture is called fake, and when nothing is said. ValueError for what is not a probability."""

    threshold: float | None = None  # fake when its probability is at least this; None: the likeliest class
    abstain: float = 0.5  # inconclusive when the verdict's probability is below this
    gps: bool = False

    def __post_init__(self) -> None:
        for name in ("threshold", "abstain"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}: expected a probability, 0 to 1")


@cache
def weights_sha256(folder: Path) -> str:
    """Of the checkpoint's weight files, names and contents, in order; the same weights have the same."""
    digest = hashlib.sha256()
    for path in sorted((*folder.rglob("*.safetensors"), *folder.glob("*.bin"))):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def checkpoint(pipe: SidaPipeline) -> dict[str, Any]:
    """Which weights answered."""
    config, folder = pipe.model.config, pipe.folder
    known = {"name": folder and folder.name, "weights_sha256": folder and weights_sha256(folder), "stage": config.stage}
    return known | {"temperature": config.cls_temperature, "calibrated_on": config.calibrated_on}


def build(pipe: SidaPipeline, prediction: Prediction, rules: Rules, *, decode: str, saved: Mapping[str, str | None] | None = None) -> dict[str, Any]:
    """The record of one picture."""
    saved = saved or {"mask": None, "overlay": None}
    file = describe(prediction.opened, rules.gps)
    probs = {name: round(value, DIGITS) for name, value in prediction.probs.items()}
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "SIDA"},
        "checkpoint": checkpoint(pipe),
        "file": file,
        "probabilities": probs | {"fake": round(1 - prediction.probs[Label.REAL.title], DIGITS)},
        "verdict": verdict(prediction, file, rules, pipe.model.config),
        "localization": {
            "mask": saved["mask"],
            "overlay": saved["overlay"],
            "tampered_percent": None if prediction.area is None else round(100 * prediction.area, 2),
            "boxes": [list(box) for box in prediction.boxes],
        },
        "explanation": None if decode == "forced" else {"text": prediction.text, "complete": prediction.ended, "status": GENERATED},
        "run": {
            "decode": decode,
            "views": 1 if decode == "reference" else pipe.model.config.views,
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "device": pipe.device,
            "seed": None,  # nothing is drawn: decoding is greedy
            "milliseconds": round(1000 * prediction.seconds, 1),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        "caveat": CAVEAT,
    }


def failure(name: str, error: Exception) -> dict[str, Any]:
    """The record of a picture that could not be read."""
    return {"schema_version": SCHEMA_VERSION, "tool": {"name": "SIDA"}, "file": {"name": name}, "error": {"kind": type(error).__name__, "reason": str(error)}}


def verdict(prediction: Prediction, file: Mapping[str, Any], rules: Rules, config: SidaConfig) -> dict[str, Any]:
    """What to say, how strongly, and why not when nothing can be said. Odds cannot exceed the pictures that the temperature was fitted on."""
    leaning = prediction.label.title
    real = prediction.probs[Label.REAL.title]
    sure = real if prediction.label is Label.REAL else 1 - real if rules.threshold is not None else prediction.probs[leaning]
    reasons = list(_doubts(prediction, file, rules, sure, config.image_size))
    against = 1 - real if prediction.label is Label.REAL else real
    odds = min((1 - against) / max(against, 1e-9), config.calibrated_on)
    return {
        "label": "inconclusive" if reasons else leaning,
        "leaning": leaning,
        "reasons": reasons,
        "evidence": band(odds) if config.calibrated_on and not reasons else None,
        "threshold": rules.threshold,
        "abstain": rules.abstain,
    }


def band(odds: float) -> str:
    """The words for `odds` that the verdict is right."""
    return next(word for least, word in BANDS if odds >= least)


def _doubts(prediction: Prediction, file: Mapping[str, Any], rules: Rules, sure: float, side: int) -> list[str]:
    height, width = prediction.image.shape[:2]
    doubts = []
    if sure < rules.abstain:
        doubts.append(f"low margin: probability {sure:.2f}, {rules.abstain:.2f} is asked for")
    if min(height, width) < SMALLEST:
        doubts.append(f"too small: {width} x {height} pixels, at least {SMALLEST} a side are needed")
    if max(height, width) > SHRUNK * side:
        doubts.append(f"too large: {width} x {height} pixels are shrunk to {side}, more than {SHRUNK} times")
    if (quality := file["jpeg_quality"]) is not None and quality < RECOMPRESSED:
        doubts.append(f"heavily recompressed: JPEG quality {quality}, at least {RECOMPRESSED} is needed")
    return doubts
