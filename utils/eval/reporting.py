"""A whole evaluation: pictures to lines, lines to figures, figures to a report. evaluate_SIDA.py and train_SIDA.py --eval_only are this."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from utils.data.features import FeatureCache
from utils.data.records import Record
from utils.distributed import is_main
from utils.eval.explanations import explained, packaged_encoder
from utils.eval.gallery import draw_gallery
from utils.eval.pages import write_pages
from utils.eval.runs import collect
from utils.eval.summary import summarize
from utils.infer.pipeline import SidaPipeline

PROTOCOLS = ("end2end", "oracle", "legacy")


def report_on(
    folder: Path,
    pipe: SidaPipeline,
    records: Sequence[Record],
    title: str,
    *,
    batch_size: int,
    protocols: Sequence[str] = PROTOCOLS,
    corruptions: Sequence[str] = (),
    seed: int = 0,
    workers: int = 0,
    encoder: str | None = None,
    features: FeatureCache | None = None,
) -> dict[str, Any]:
    """Judge what `folder` does not hold yet, on all ranks; the first one writes report.md, metrics.json, tables and pictures.

    Returns corruption ("" for none) -> figures there, {} on the others. `encoder`: a sentence encoder for CSS, see `packaged_encoder`.
    """
    how = {"corruptions": corruptions, "batch_size": batch_size, "seed": seed, "device": torch.device(pipe.device), "dtype": pipe.dtype, "workers": workers}
    lines = collect(folder, pipe.model, pipe.processor, records, **how, features=features)
    if not is_main():
        return {}
    figures = {name: summarize([line for line in lines if line.corruption == name], protocols, intervals=name == "") for name in ("", *corruptions)}
    clean = [line for line in lines if line.corruption == ""]
    if told := explained(clean, encoder or packaged_encoder()):
        figures[""]["explanation"] = told
    write_pages(folder, figures, lines, title, draw_gallery(folder, pipe, records, clean))
    return figures
