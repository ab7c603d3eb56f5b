"""app.py in a browser: upload, verdict, mask, downloads; nothing is asked of any other machine."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlparse

import httpx
import pytest

from tests.hostile import hostile
from tests.scripts.launch import ROOT
from tests.utils.infer.test_report import CHECK, PHOTO

HANDFUL = sorted((ROOT / "examples" / "SID_handful" / "test").glob("[!m]*/*.jpg"))
OWN = ("file", "probabilities", "verdict", "localization")  # of a record: what the picture decides
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, int]]:
    """A running app.py: its address and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen([sys.executable, "app.py", "--port", str(port)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield wait(f"http://127.0.0.1:{port}"), process.pid
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def address(server: tuple[str, int]) -> str:
    return server[0]


def wait(address: str, seconds: float = 120) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{address}/api/health", timeout=5) as answer:
                assert json.load(answer)["status"] == "ok"
                return address
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    raise TimeoutError(address)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt install chromium)")
def test_in_a_browser(address: str) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.set_input_files("#picture input[type=file]", PHOTO, timeout=60_000)
        page.wait_for_selector("#downloads a", timeout=60_000)
        assert page.inner_text("#verdict").startswith("Tampered")
        assert "%" in page.inner_text("#bars")
        page.locator("#marked img").scroll_into_view_if_needed()  # it loads lazily
        page.wait_for_function("document.querySelector('#marked img')?.naturalWidth === 384")
        assert "Type: " in page.input_value("#words textarea")  # the default checkpoint says why
        assert "perceptual_hash" in page.inner_text("#provenance")
        links = [link.get_attribute("href") for link in page.query_selector_all("#downloads a")]
        report = page.request.get(next(link for link in links if link.endswith(".json"))).json()
        assert page.request.get(next(link for link in links if link.endswith(".png"))).body()[:4] == b"\x89PNG"
        browser.close()
    CHECK.validate(report)
    assert report["file"]["name"] == PHOTO.name
    assert {urlparse(url).hostname for url in asked if url.startswith("http")} == {"127.0.0.1"}


def test_both_pages_of_the_api_stay_local(address: str) -> None:
    with urllib.request.urlopen(address, timeout=30) as answer:
        html = answer.read().decode()
    assert "fonts.googleapis" not in html
    assert 'src="http' not in html


def post(address: str, name: str, content: bytes) -> tuple[int, dict]:
    answer = httpx.post(f"{address}/api/predict", files={"image": (name, content)}, timeout=120)
    return answer.status_code, answer.json()


@pytest.mark.slow
def test_hostile_uploads(address: str) -> None:
    """500 of them: an answer, or a reason why there is none."""
    for name, content in hostile(500):
        status, body = post(address, name, content)
        assert status == 200 or (400 <= status < 500 and body["error"]["reason"]), name


@pytest.mark.slow
def test_eight_clients_at_once(server: tuple[str, int]) -> None:
    """200 requests: all answered, each with its own picture's record; memory during the last 50 is that during the first."""
    address, process = server
    pictures = {path: path.read_bytes() for path in HANDFUL}
    alone = {path: post(address, path.name, content)[1] for path, content in pictures.items()}
    resident: list[int] = []

    def ask(path: Path) -> tuple[int, dict]:
        answer = post(address, path.name, pictures[path])
        resident.append(int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[1]))
        return answer

    asked = [HANDFUL[i % len(HANDFUL)] for i in range(200)]
    with ThreadPoolExecutor(8) as clients:
        for path, (status, record) in zip(asked, clients.map(ask, asked), strict=True):
            assert status == 200
            assert {part: record[part] for part in OWN} == {part: alone[path][part] for part in OWN}
    first, last = (sum(some) / len(some) for some in (resident[:50], resident[-50:]))
    assert last < 1.1 * first


def test_bad_flags_end_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    import app

    assert app.main(["--version", "nowhere"]) == 1
    assert "no config.json in nowhere" in capsys.readouterr().err
