"""What the arguments mean, and reading ahead within bounds."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.infer import files
from utils.infer.files import ahead, fetch, find
from utils.infer.intake import Oversized, open_picture


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.PNG", "notes.md", "deep/c d.webp", "deep/größe.heic", "deep/a.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def test_folders_globs_lists_and_files(tree: Path) -> None:
    every = [str(tree / name) for name in ("a.jpg", "b.PNG", "deep/a.jpg", "deep/c d.webp", "deep/größe.heic")]
    assert find([str(tree)]) == every
    assert find([str(tree / "*.jpg"), str(tree / "deep")]) == [every[0], *every[2:]]
    assert find([str(tree / "**" / "a.jpg")]) == [every[0], every[2]]
    assert find([str(tree / "notes.md"), str(tree), str(tree / "a.jpg")]) == [str(tree / "notes.md"), *every]  # what is named is meant
    (tree / "list.txt").write_text(f"# mine\n{every[1]}\n\n{tree / 'deep'}\n")
    assert find([str(tree / "list.txt")]) == [every[1], *every[2:]]
    assert find(["nowhere.jpg"]) == ["nowhere.jpg"]  # reading it says what is wrong


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(tree: Path) -> None:
    odd = tree / "photo[1].jpg"
    odd.touch()
    assert find([str(odd)]) == [str(odd)]


def test_links_in_a_circle_end(tree: Path) -> None:
    (tree / "deep" / "up").symlink_to(tree)
    (tree / "self.jpg").symlink_to(tree / "self.jpg")
    assert len(find([str(tree)])) == 6


@pytest.mark.parametrize(("argument", "message"), [("http://x.org/a.jpg", "--allow_url"), ("*.nothing", "no pictures in")])
def test_what_does_not_do(tree: Path, argument: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find([str(tree / argument) if "*" in argument else argument])


def test_addresses(tmp_path: Path) -> None:
    assert find(["https://x.org/a.jpg"], allow_url=True) == ["https://x.org/a.jpg"]
    with pytest.raises(OSError, match="cannot fetch"):
        fetch("http://127.0.0.1:9/a.jpg")


def test_reading_ahead_keeps_order_and_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "AHEAD", 0.02)  # two pictures of 100 x 100
    names = []
    for i in range(12):
        names.append(str(tmp_path / f"{i:02d}.png"))
        Image.fromarray(np.zeros((100, 100, 3), np.uint8)).save(names[-1])
    started, lock = [], threading.Lock()

    def read(name: str) -> str:
        with lock:
            started.append(name)
        time.sleep(0.002)
        return name

    out = []
    for name in ahead(names, read, workers=4):
        out.append(name)
        assert len(started) - len(out) <= 2
    assert out == names


def test_a_header_that_claims_five_thousand_megapixels(tmp_path: Path) -> None:
    """Pillow raises for it even before it is opened for reading."""
    bomb = tmp_path / "bomb.ppm"
    bomb.write_bytes(b"P6 71000 71000 255\n" + bytes(100))
    assert list(ahead([str(bomb)], str)) == [str(bomb)]
    with pytest.raises(Oversized, match="larger than Pillow opens"):
        open_picture(bomb)
