"""What a terminal can do: edit lines, remember them, complete paths, show pictures."""

from __future__ import annotations

import base64
import contextlib
import glob
import os
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

HISTORY_LINES = 1000
CHUNK = 4096  # bytes of one kitty escape
SHOWN = 480  # pixels: a larger picture is shrunk for the terminal


def edit_lines(commands: tuple[str, ...]) -> None:
    """Let input() edit lines, remember them over sessions, and complete `commands` and paths. Nothing where there is no readline."""
    try:
        import atexit
        import readline
    except ImportError:  # Windows
        return
    path = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "sida" / "history"
    with contextlib.suppress(OSError):  # no history yet, or nowhere to keep one
        path.parent.mkdir(parents=True, exist_ok=True)
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)
    readline.set_completer_delims("\n")
    readline.set_completer(lambda text, state: dict(enumerate(complete(text, commands))).get(state))
    readline.parse_and_bind("tab: complete")

    def remember() -> None:
        with contextlib.suppress(OSError):
            readline.write_history_file(path)

    atexit.register(remember)


def complete(text: str, commands: tuple[str, ...]) -> list[str]:
    """What the line may become: a command, or the path at its end; folders end in /."""
    if text.startswith("/") and " " not in text and (known := [command for command in commands if command.startswith(text)]):
        return [f"{command} " for command in known]
    command, space, path = text.partition(" ") if text.split(" ")[0] in commands else ("", "", text)
    found = sorted(glob.glob(glob.escape(os.path.expanduser(path)) + "*"))  # noqa: PTH111, PTH207 (keeps the text as it was typed)
    return [f"{command}{space}{match}/" if Path(match).is_dir() else f"{command}{space}{match}" for match in found]


def picture_escape(image: np.ndarray, environment: Mapping[str, str]) -> str | None:
    """uint8 RGB [H, W, 3] as text that shows it in kitty, iTerm2 or WezTerm; None in a terminal that cannot."""
    scale = min(1.0, SHOWN / max(image.shape[:2]))
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image
    data = base64.b64encode(cv2.imencode(".png", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))[1].tobytes()).decode()
    if "kitty" in environment.get("TERM", ""):
        pieces = [data[i : i + CHUNK] for i in range(0, len(data), CHUNK)]
        heads = ["a=T,f=100,m={}"] + ["m={}"] * (len(pieces) - 1)
        return "".join(f"\x1b_G{head.format(int(i < len(pieces) - 1))};{piece}\x1b\\" for i, (head, piece) in enumerate(zip(heads, pieces, strict=True)))
    if environment.get("TERM_PROGRAM") in ("iTerm.app", "WezTerm"):
        return f"\x1b]1337;File=inline=1;preserveAspectRatio=1:{data}\a"
    return None
