"""Completion, pictures in terminals, and the chat's commands."""

from __future__ import annotations

import base64
import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

import chat
from tests.scripts.launch import ROOT
from tests.utils.infer.test_report import CHECK, PHOTO
from utils.infer.pipeline import SidaPipeline
from utils.infer.terminal import complete, picture_escape

REAL = ROOT / "examples" / "SID_handful" / "test" / "real" / "bridge.jpg"


def test_completion(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photo 1.jpg").touch()
    assert complete("/im", chat.COMMANDS) == ["/image "]
    assert complete(str(tmp_path / "pho"), chat.COMMANDS) == [f"{tmp_path}/photo 1.jpg", f"{tmp_path}/photos/"]
    assert complete(f"/image {tmp_path}/photo ", chat.COMMANDS) == [f"/image {tmp_path}/photo 1.jpg"]
    assert complete("what is", chat.COMMANDS) == []


def test_pictures_in_terminals_that_can() -> None:
    image = np.random.default_rng(0).integers(0, 256, (600, 900, 3), dtype=np.uint8)
    assert picture_escape(image, {"TERM": "xterm"}) is None
    iterm = picture_escape(image, {"TERM_PROGRAM": "WezTerm"})
    assert cv2.imdecode(np.frombuffer(base64.b64decode(iterm.split(":")[1][:-1]), np.uint8), 1).shape == (320, 480, 3)
    kitty = picture_escape(image, {"TERM": "xterm-kitty"}).split("\x1b\\")[:-1]
    pieces = [piece.removeprefix("\x1b_G").split(";") for piece in kitty]
    assert pieces[0][0] == "a=T,f=100,m=1"
    assert {head for head, _ in pieces[1:-1]} == {"m=1"}
    assert pieces[-1][0] == "m=0"
    assert "".join(data for _, data in pieces) == iterm.split(":")[1][:-1]


def talk(lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    assert chat.main(["--vis_save_path", str(tmp_path)]) == 0
    return capsys.readouterr()


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = talk(
        ["/mask", f"/image {PHOTO}", "/prompt", "", "/mask", "/report", "/help", "/nothing", "/image nowhere.jpg", "/quit"], tmp_path, monkeypatch, capsys
    )
    assert "ask about a picture first" in out
    assert "the question that the checkpoint was trained on" in out
    assert "class: tampered" in out
    assert str(tmp_path / f"{PHOTO.stem}_masked_img_0.jpg") in out.splitlines()
    CHECK.validate(json.loads((tmp_path / f"{PHOTO.stem}_report.json").read_text()))
    assert chat.HELP in out
    assert "no command /nothing" in err
    assert "no picture at nowhere.jpg" in err


def test_an_empty_path_keeps_the_picture_and_its_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    prepare = SidaPipeline.prepare
    monkeypatch.setattr(SidaPipeline, "prepare", lambda self, image: (seen.append(image), prepare(self, image))[1])
    out, err = talk(["", str(PHOTO), "", "", f"/image {REAL}", "", "", "/quit"], tmp_path, monkeypatch, capsys)
    assert [line.split()[1] for line in out.splitlines() if line.startswith("class:")] == ["tampered"] * 2 + ["real"] * 2
    assert seen == [str(PHOTO), str(REAL)]
    assert f"[{PHOTO}]" in err


def test_ctrl_c_stops_an_answer_and_keeps_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    call, calls = SidaPipeline.__call__, []

    def interrupted(self: SidaPipeline, *args: object, **kwargs: object) -> object:
        calls.append(args[0])
        if len(calls) == 1:
            raise KeyboardInterrupt
        return call(self, *args, **kwargs)

    monkeypatch.setattr(SidaPipeline, "__call__", interrupted)
    out, _ = talk(["", str(PHOTO), "", "", "/quit"], tmp_path, monkeypatch, capsys)
    assert "stopped" in out
    assert "class: tampered" in out
    assert calls[0] is calls[1]


def test_a_picture_asked_again_is_not_encoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = SidaPipeline.from_pretrained(ROOT / "ck" / "SIDA-tiny", device="cpu")
    fresh, seen = pipe.detect(PHOTO), pipe.look(PHOTO)
    first = pipe(seen, decode="forced")
    for module in (pipe.model.model.vision_tower, pipe.model.model.visual_model.image_encoder):
        monkeypatch.setattr(module, "forward", lambda *args, **kwargs: pytest.fail("encoded again"))
    again = pipe(seen, decode="forced")
    for other in (first, again):
        assert other.probs == pytest.approx(fresh.probs, abs=1e-5)
        np.testing.assert_array_equal(other.mask, fresh.mask)


def test_at_a_terminal(tmp_path: Path) -> None:
    """A real terminal: lines are edited and completed, Ctrl-D leaves."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path), "TERM": "xterm"}
    command = [sys.executable, "chat.py", "--vis_save_path", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, env=environment)
    try:
        read_until(ours, b"prompt: ")
        os.write(ours, f"/im\t{str(PHOTO)[:-6]}\t\n".encode())  # Tab twice: the command, the path
        read_until(ours, b"prompt: ")
        os.write(ours, b"\n")
        assert b"class: tampered" in read_until(ours, b"prompt: ")
        os.write(ours, b"\x04")
        assert process.wait(60) == 0
    finally:
        process.kill()
    assert "/image" in (tmp_path / "sida" / "history").read_text()


def read_until(terminal: int, mark: bytes, seconds: float = 90) -> bytes:
    """What the terminal shows up to `mark`."""
    out, end = b"", time.monotonic() + seconds
    while mark not in out:
        assert select.select([terminal], [], [], max(0, end - time.monotonic()))[0], out
        out += os.read(terminal, 65536)
    return out
