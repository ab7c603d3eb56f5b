"""One model, many askers: a turn for each, a bounded queue, limits on what is sent, and the HTTP endpoint over it.

POST /api/predict   multipart: `image` (a file), `explain` (true or false) -> 200 and the report, or 4xx and {"error": {"kind", "reason"}}
GET  /api/health    {"status": "ok", "checkpoint", "device", "waiting"}
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import cv2
import numpy as np
from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from utils.infer.intake import Opened, Oversized, open_picture
from utils.infer.pipeline import Seen, SidaPipeline
from utils.infer.prediction import Prediction
from utils.infer.report import Rules, build, checkpoint


@dataclass(frozen=True)
class Limits:
    """Of one request, and of how many may wait."""

    megabytes: float = 20.0
    megapixels: float = 50.0
    waiting: int = 16
    seconds: float = 60.0  # in the queue
    tokens: int = 512  # of an explanation


class Busy(Exception):
    """Too many are waiting, or one has waited too long."""


class Service:
    """A pipeline that many threads may ask."""

    def __init__(self, pipe: SidaPipeline, rules: Rules | None = None, limits: Limits | None = None) -> None:
        self.pipe, self.rules, self.limits = pipe, rules or Rules(), limits or Limits()
        self.model = threading.Lock()
        self.places = threading.BoundedSemaphore(self.limits.waiting)
        self.waiting = 0
        # The one thread in which the model runs: of several each keeps what its allocator once needed, and 8 clients took 1.7 GB instead of 0.7.
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="model")

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The model to oneself. Busy when the queue is full or does not move."""
        if not self.places.acquire(blocking=False):
            raise Busy(f"{self.limits.waiting} requests are waiting: try again in a few seconds")
        try:
            self.waiting += 1
            if not self.model.acquire(timeout=self.limits.seconds):
                raise Busy(f"no turn within {self.limits.seconds:g} seconds: try again later")
            try:
                yield
            finally:
                self.model.release()
        finally:
            self.waiting -= 1
            self.places.release()

    def open(self, content: bytes, name: str) -> Opened:
        """Decode what was sent. Oversized or ValueError when it does not do."""
        if len(content) > self.limits.megabytes * 2**20:
            raise Oversized(f"{name} has {len(content) / 2**20:.1f} MB, the limit is {self.limits.megabytes:g}: save it smaller")
        opened = open_picture(content, self.limits.megapixels)
        return Opened(**{**vars(opened), "name": name})

    def judge(self, picture: Opened | Seen, explain: bool = False, on_text: Callable[[str], None] | None = None) -> Prediction:
        """The answer about one picture, in its turn."""
        how = {"decode": "explain" if explain else "forced", "max_new_tokens": self.limits.tokens, "threshold": self.rules.threshold, "on_text": on_text}
        with self.turn():
            return self.worker.submit(self.pipe, picture, **how).result()

    def look(self, picture: Opened) -> Seen:
        """What the encoders make of a picture about which more than one thing will be asked, in its turn."""
        with self.turn():
            return self.worker.submit(self.pipe.look, picture).result()

    def report(self, prediction: Prediction, explain: bool) -> dict[str, Any]:
        """The record of an answer, its mask inside as a data address."""
        saved = {"mask": data_url(prediction.mask) if prediction.mask is not None else None, "overlay": None}
        return build(self.pipe, prediction, self.rules, decode="explain" if explain else "forced", saved=saved)


def data_url(mask: np.ndarray) -> str:
    """bool [H, W] as a PNG of 0 and 255."""
    _, png = cv2.imencode(".png", mask.astype(np.uint8) * 255)
    return "data:image/png;base64," + base64.b64encode(png.tobytes()).decode()


def refuse(status: int, error: Exception) -> JSONResponse:
    """An answer that says why there is none."""
    return JSONResponse({"error": {"kind": type(error).__name__, "reason": str(error)}}, status)


def api(service: Service) -> FastAPI:
    """The endpoint and the health route."""
    app = FastAPI(title="SIDA", description=__doc__, docs_url=None, redoc_url=None)  # both pages load scripts from elsewhere
    most = service.limits.megabytes * 2**20 + 65536  # and the form around it

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Any]) -> Any:
        if request.url.path == "/api/predict" and request.method == "POST":
            length = request.headers.get("content-length", "")
            if not length.isdecimal():
                return refuse(411, ValueError("no Content-Length: send the picture as one multipart form"))
            if int(length) > most:
                return refuse(413, Oversized(f"{int(length) / 2**20:.1f} MB, the limit is {service.limits.megabytes:g}: save the picture smaller"))
        return await call_next(request)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        return refuse(422, ValueError(f"expected a multipart form with a file called image: {error.errors()[0].get('msg')}"))

    @app.get("/api/health")
    def health() -> dict[str, Any]:
        return {"status": "ok", "checkpoint": checkpoint(service.pipe)["name"], "device": service.pipe.device, "waiting": service.waiting}

    @app.post("/api/predict")
    def predict(image: Annotated[UploadFile, File()], explain: Annotated[bool, Form()] = False) -> Any:
        try:
            opened = service.open(image.file.read(), image.filename or "image")
            return JSONResponse(service.report(service.judge(opened, explain), explain))
        except Oversized as error:
            return refuse(413, error)
        except ValueError as error:
            return refuse(415, error)
        except Busy as error:
            return refuse(429, error)

    return app
