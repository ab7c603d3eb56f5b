"""How far one gets without looking: classifiers on a file's metadata and on an 8 x 8 thumbnail.

A data set whose classes can be told apart by these teaches its own making, not forensics.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from sklearn.base import ClassifierMixin
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from utils.data.records import Record
from utils.data.transforms import read_rgb

THUMBNAIL = 8  # pixels a side


def metadata(path: Path) -> np.ndarray:
    """What a JPEG file says without being decoded: bytes, width, height, its quantisation tables' beginnings, number of header fields."""
    with Image.open(path) as image:
        tables = [value for i in (0, 1) for value in list(getattr(image, "quantization", {}).get(i, [0] * 8))[:8]]
        return np.array([path.stat().st_size, *image.size, *tables, len(image.info)], dtype=np.float64)


def thumbnail(path: Path) -> np.ndarray:
    """The picture at 8 x 8 pixels, 0..1, flat [192]."""
    return cv2.resize(read_rgb(path), (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA).ravel() / 255.0


def _classifiers(seed: int) -> list[ClassifierMixin]:
    return [
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        RandomForestClassifier(300, min_samples_leaf=5, random_state=seed, n_jobs=1),
        HistGradientBoostingClassifier(max_iter=60, learning_rate=0.05, random_state=seed),
    ]


def metadata_accuracy(train: Sequence[Record], test: Sequence[Record], seed: int = 0) -> float:
    """Three-class accuracy on `test`, 0..1, of the best of three classifiers fitted to `train`'s metadata."""
    (x, y), (tx, ty) = ((np.stack([metadata(r.image) for r in records]), np.array([r.label for r in records])) for records in (train, test))
    return max(float((model.fit(x, y).predict(tx) == ty).mean()) for model in _classifiers(seed))


def thumbnail_auroc(train: tuple[Sequence[Record], Sequence[Record]], test: tuple[Sequence[Record], Sequence[Record]], seed: int = 0) -> float:
    """AUROC on `test`, 0..1, of the best of three classifiers on thumbnails; both arguments are (negatives, positives)."""
    x, tx = (np.stack([thumbnail(record.image) for side in sides for record in side]) for sides in (train, test))
    y, ty = (np.repeat([0, 1], [len(side) for side in sides]) for sides in (train, test))
    return max(float(roc_auc_score(ty, model.fit(x, y).predict_proba(tx)[:, 1])) for model in _classifiers(seed))
