"""The endpoint: every request gets its own answer, or a reason."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import jsonschema
import numpy as np
import pytest
from fastapi.testclient import TestClient

from tests.hostile import hostile
from tests.scripts.launch import ROOT
from tests.utils.infer.test_report import CHECK, PHOTO
from utils.infer.page import answer
from utils.infer.pipeline import SidaPipeline
from utils.infer.service import Busy, Limits, Service, api

HANDFUL = sorted((ROOT / "examples" / "SID_handful" / "test").glob("[!m]*/*.jpg"))


@pytest.fixture(scope="module")
def service() -> Service:
    """Of one look at a picture: what counts here is the requests."""
    return Service(SidaPipeline.from_pretrained(ROOT / "ck" / "SIDA-tiny", device="cpu", views=1), limits=Limits(megabytes=2, megapixels=10))


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(api(service)) as client:
        yield client


def post(client: TestClient, name: str, content: bytes, **form: str) -> tuple[int, dict]:
    answer = client.post("/api/predict", files={"image": (name, content)}, data=form)
    return answer.status_code, answer.json()


def test_a_report_with_its_mask_inside(client: TestClient) -> None:
    status, record = post(client, "photo.jpg", PHOTO.read_bytes(), explain="true")
    assert status == 200
    jsonschema.validate(record, CHECK.schema)
    mask = cv2.imdecode(np.frombuffer(base64.b64decode(record["localization"]["mask"].split(",")[1]), np.uint8), cv2.IMREAD_GRAYSCALE)
    assert mask.shape == (record["file"]["height"], record["file"]["width"])
    assert set(np.unique(mask)) == {0, 255}
    assert record["explanation"]["text"]
    assert record["file"]["name"] == "photo.jpg"


def test_health(client: TestClient) -> None:
    assert client.get("/api/health").json() == {"status": "ok", "checkpoint": "SIDA-tiny", "device": "cpu", "waiting": 0}


def test_refusals_name_the_reason(client: TestClient) -> None:
    for content, status, reason in (
        (b"not a picture", 415, "not a picture"),
        (b"", 415, "empty"),
        (b"0" * (2**21 + 10**6), 413, "the limit is 2"),
    ):
        found, body = post(client, "x.jpg", content)
        assert (found, reason in body["error"]["reason"]) == (status, True), body
    assert client.post("/api/predict", data={"picture": "x"}).status_code == 422
    assert client.post("/api/predict", content=iter([b"x"])).status_code == 411
    big = cv2.imencode(".png", np.zeros((4000, 4000), np.uint8))[1].tobytes()
    assert post(client, "big.png", big)[0] == 413


def test_hostile_uploads(client: TestClient) -> None:
    for name, content in hostile(48, seed=2):
        status, body = post(client, name, content)
        assert status == 200 or (400 <= status < 500 and body["error"]["reason"]), name


def test_many_at_once_get_their_own_answers(client: TestClient) -> None:
    alone = {path: post(client, path.name, path.read_bytes())[1] for path in HANDFUL}
    with ThreadPoolExecutor(8) as threads:
        jobs = [(path, threads.submit(post, client, path.name, path.read_bytes())) for path in HANDFUL * 6]
        for path, job in jobs:
            status, record = job.result()
            assert status == 200
            assert [record[part] for part in ("file", "probabilities", "verdict", "localization")] == [
                alone[path][part] for part in ("file", "probabilities", "verdict", "localization")
            ]


def test_one_thread_runs_the_model_whoever_asks(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that does keeps memory of its own."""
    ran, asked, forward = set(), set(), service.pipe.model.model.forward

    def noted(*args: object, **kwargs: object) -> object:
        ran.add(threading.get_ident())
        return forward(*args, **kwargs)

    def ask(path: Path) -> None:
        asked.add(threading.get_ident())
        opened = service.open(path.read_bytes(), path.name)
        service.judge(opened)
        service.judge(service.look(opened), explain=True)

    monkeypatch.setattr(service.pipe.model.model, "forward", noted)
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(ask, HANDFUL[:3]))
    assert len(asked) > 1
    assert len(ran) == 1
    assert not ran & asked


def test_a_full_queue_says_so(service: Service) -> None:
    small = Service(service.pipe, limits=replace(service.limits, waiting=2, seconds=0.2))
    with small.turn(), ThreadPoolExecutor(1) as other:

        def wait() -> str:
            with pytest.raises(Busy) as error, small.turn():
                pass
            return str(error.value)

        waiting = other.submit(wait)
        while small.waiting < 2:
            threading.Event().wait(0.01)
        with pytest.raises(Busy, match="2 requests are waiting"), small.turn():
            pass
        assert "no turn within 0.2 seconds" in waiting.result()
    assert small.waiting == 0


@pytest.mark.parametrize("explain", [False, True])
def test_what_the_page_shows(service: Service, explain: bool) -> None:
    steps = list(answer(service, str(PHOTO), explain, 0.5))
    first, last = steps[0], steps[-1]
    assert first[0].startswith("## Tampered")
    assert first[6] is None  # nothing to download yet
    assert [Path(path).name for path in last[6]] == ["report.json", "mask.png"]
    assert bool(last[4]) == explain
    texts = [step[4] for step in steps]
    assert texts == sorted(texts, key=len)  # it grows


def test_the_page_refuses_in_words(service: Service, tmp_path: Path) -> None:
    import gradio

    (tmp_path / "x.jpg").write_bytes(b"x")
    for path, reason in ((None, "Choose a picture"), (str(tmp_path / "x.jpg"), "not a picture")):
        with pytest.raises(gradio.Error, match=reason):
            list(answer(service, path, False, 0.5))
