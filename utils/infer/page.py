"""The web page: drop a picture; see the verdict, where, why, and what its file says. Everything it loads comes from this machine."""

from __future__ import annotations

import functools
import json
import queue
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import numpy as np

from utils.infer.prediction import Prediction
from utils.infer.report import CAVEAT
from utils.infer.service import Busy, Service
from utils.infer.visualize import overlay, write_picture

SHOWN = 1280  # pixels: a larger picture is shrunk for the page, not for the verdict or the mask that is downloaded
KEPT = 3600  # seconds until downloads are deleted
TITLES = {"real": "Real", "full_synthetic": "Fully synthetic", "tampered": "Tampered", "inconclusive": "Inconclusive"}
Shown = tuple[np.ndarray, np.ndarray | None]  # picture and mask, shrunk


def page(service: Service, examples: Sequence[str]) -> gr.Blocks:
    """The page over `service`."""
    with gr.Blocks(title="SIDA", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as blocks:
        gr.Markdown("# SIDA\nIs this picture real, fully synthetic, or tampered with? It stays on this machine.")
        shown = gr.State()
        with gr.Row():
            with gr.Column():
                file = gr.File(label="Drop a picture here", type="filepath", elem_id="picture", height=120)
                explain = gr.Checkbox(label="Say why (written by the model, not evidence)", value=service.pipe.model.config.stage == "description")
                ask = gr.Button("Judge it", variant="primary", elem_id="ask")
                gr.Examples([[path] for path in examples], inputs=[file], label="Or one of these")
            with gr.Column():
                verdict = gr.Markdown(elem_id="verdict")
                bars = gr.Label(label="Calibrated probabilities", show_heading=False, elem_id="bars")
        with gr.Row():
            original = gr.Image(label="As it was read", interactive=False, format="png", buttons=["fullscreen"])
            marked = gr.Image(label="What is marked as tampered", interactive=False, elem_id="marked", format="png", buttons=["download", "fullscreen"])
        alpha = gr.Slider(0, 1, 0.5, step=0.05, label="Strength of the mark")
        words = gr.Textbox(label="Explanation, written by the model: not evidence", interactive=False, lines=3, elem_id="words")
        with gr.Row():
            provenance = gr.JSON(label="What the file says about itself", elem_id="provenance")
            downloads = gr.File(label="Report and mask", interactive=False, file_count="multiple", elem_id="downloads")
        outputs = [verdict, bars, original, marked, words, provenance, downloads, shown]
        asked = {"fn": functools.partial(answer, service), "inputs": [file, explain, alpha], "outputs": outputs}
        gr.on([ask.click, file.upload], **asked, api_visibility="private", concurrency_limit=2)
        alpha.change(paint, [shown, alpha], marked, api_visibility="private", show_progress="hidden")
    return blocks.queue(max_size=service.limits.waiting, api_open=False)


def answer(service: Service, path: str | None, explain: bool, alpha: float) -> Iterator[tuple[Any, ...]]:
    """What the page shows: first the verdict, then the explanation as it is written, last the files to keep."""
    if not path:
        raise gr.Error("Choose a picture first.")
    try:
        opened = service.open(Path(path).read_bytes(), Path(path).name)
        seen = service.look(opened) if explain else opened
        prediction = service.judge(seen)
        report = service.report(prediction, explain=False)
        yield show(prediction, report, alpha, "", None)
        if explain:
            for text in written(service, seen, found := []):
                yield show(prediction, report, alpha, text, None)
            prediction = found[0]
            report = service.report(prediction, explain=True)
        yield show(prediction, report, alpha, prediction.text if explain else "", keep(prediction, report))
    except (ValueError, Busy) as error:
        raise gr.Error(str(error)) from error


def written(service: Service, seen: Any, found: list[Prediction]) -> Iterator[str]:
    """The text so far, each time it grows; the prediction is put into `found`. ValueError and Busy as `Service.judge`."""
    grown: queue.Queue[str | Exception | None] = queue.Queue()

    def work() -> None:
        try:
            found.append(service.judge(seen, explain=True, on_text=grown.put))
            grown.put(None)
        except Exception as error:
            grown.put(error)

    threading.Thread(target=work, daemon=True).start()
    while (text := grown.get()) is not None:
        if isinstance(text, Exception):
            raise text
        yield text


def show(prediction: Prediction, report: dict[str, Any], alpha: float, text: str, files: list[str] | None) -> tuple[Any, ...]:
    """Values of the page's outputs, in their order."""
    shown = shrink(prediction)
    probs = {TITLES[name]: value for name, value in report["probabilities"].items() if name in TITLES}
    return sentence(report), probs, shown[0], paint(shown, alpha), text, report["file"], files, shown


def sentence(report: dict[str, Any]) -> str:
    """The verdict in words."""
    verdict, percent = report["verdict"], report["localization"]["tampered_percent"]
    lines = [f"## {TITLES[verdict['label']]}" + (f" — {verdict['evidence']} evidence" if verdict["evidence"] else "")]
    if verdict["reasons"]:
        lines.append(f"Leaning: {TITLES[verdict['leaning']]}. " + "; ".join(verdict["reasons"]).capitalize() + ".")
    if percent is not None:
        lines.append(f"{percent:.1f} % of the picture is marked.")
    return "\n\n".join([*lines, f"*{CAVEAT}*"])


def shrink(prediction: Prediction) -> Shown:
    """Picture uint8 [h, w, 3] and mask bool [h, w] of at most SHOWN pixels a side."""
    height, width = prediction.image.shape[:2]
    scale = min(1.0, SHOWN / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    mask = prediction.mask
    return cv2.resize(prediction.image, size, interpolation=cv2.INTER_AREA), None if mask is None else cv2.resize(mask.astype(np.uint8), size) > 0


def paint(shown: Shown | None, alpha: float) -> np.ndarray | None:
    """The picture with its mask; nothing without one."""
    return None if shown is None or shown[1] is None else overlay(*shown, alpha=alpha)


def keep(prediction: Prediction, report: dict[str, Any]) -> list[str]:
    """Files to download: the report, and the mask at the picture's size."""
    folder = Path(tempfile.mkdtemp(prefix="sida-"))
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    files = [folder / "report.json"]
    if prediction.mask is not None:
        files.append(write_picture(folder / "mask.png", prediction.mask))
    return [str(path) for path in files]
