"""More sources out of packages: the kinds of archive, the pictures' sizes, and a list that fits the pack. No network."""

from __future__ import annotations

import csv
import io
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.data import more
from utils.data.sid_mini import PACK, TEST_ONLY, find, plan_sources
from utils.train import small_clip

LISTS = [list(csv.DictReader((PACK / name).open(newline=""))) for name in ("MORE.csv", "WIDER.csv")]
ROWS = [row for rows in LISTS for row in rows]


def picture(width: int, height: int, *greys: int) -> bytes:
    """WebP of one grey level a frame."""
    frames = [Image.new("RGB", (width, height), (grey,) * 3) for grey in greys]
    file = io.BytesIO()
    frames[0].save(file, "webp", lossless=True, save_all=True, append_images=frames[1:])
    return file.getvalue()


def resource_file(folder: str, files: dict[str, bytes]) -> bytes:
    """A binary Qt resource file, version 3: `folder` in the root, `files` in it, every other one compressed."""
    names, data, nodes = b"", b"", [struct.pack(">IHII8x", 0, 2, 1, 1), struct.pack(">IHII8x", 0, 2, len(files), 2)]
    offsets = []
    for name in (folder, *files):
        offsets.append(len(names))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    for i, (offset, content) in enumerate(zip(offsets[1:], files.values(), strict=True)):
        stored = struct.pack(">I", len(content)) + zlib.compress(content) if i % 2 else content
        nodes.append(struct.pack(">IHHHI8x", offset, i % 2, 0, 0, len(data)))
        data += struct.pack(">I", len(stored)) + stored
    tree = b"".join(nodes)
    return struct.pack(">4sIIIII", b"qres", 3, 24, 24 + len(tree), 24 + len(tree) + len(data), 0) + tree + data + names


def wheel(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def deb(path: Path, files: dict[str, bytes]) -> Path:
    def tar(members: dict[str, bytes]) -> bytes:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:xz") as archive:
            for name, content in members.items():
                entry = tarfile.TarInfo(f"./{name}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return file.getvalue()

    parts = {"debian-binary": b"2.0\n", "control.tar.xz": tar({"control": b"Package: x\n"}), "data.tar.xz": tar(files)}
    body = b"".join(f"{name:<16}{0:<12}{0:<6}{0:<6}{644:<8}{len(content):<10}`\n".encode() + content + b"\n" * (len(content) % 2) for name, content in parts.items())
    path.write_bytes(b"!<arch>\n" + body)
    return path


def test_a_resource_file_gives_back_what_was_put_in() -> None:
    files = {"plain.webp": b"abc", "packed.webp": b"x" * 500, "é.webp": b""}
    assert dict(more.read_resources(resource_file("rcc", files))) == {f"/rcc/{name}": content for name, content in files.items()}
    with pytest.raises(ValueError, match="not a Qt resource file of version 2 or 3: starts with b'nope'"):
        dict(more.read_resources(b"nope" + bytes(20)))


def test_every_kind_of_archive_is_read_and_shrunk(tmp_path: Path) -> None:
    nested = resource_file("images", {"bee.webp": picture(1000, 700, 90)})
    with tarfile.open(tmp_path / "c.tgz", "w:gz") as archive:
        content = picture(640, 640, 30)
        entry = tarfile.TarInfo("package/hill.webp")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    packages = {
        "c.tgz": tmp_path / "c.tgz",
        "a.whl": wheel(tmp_path / "a.whl", {"t/film.webp": picture(900, 800, 10, 120, 240)}),
        "b.deb": deb(tmp_path / "b.deb", {"usr/sea.webp": picture(200, 300, 60), "usr/x.rcc": nested}),
    }
    rows = [
        {"file": "ai/net/film.webp", "package": "a.whl", "member": "t/film.webp", "top": ""},
        {"file": "real/sea.webp", "package": "b.deb", "member": "usr/sea.webp", "top": ""},
        {"file": "real/hill.webp", "package": "c.tgz", "member": "package/hill.webp", "top": "0.25"},
        {"file": "real/bee.webp", "package": "b.deb", "member": "usr/x.rcc:/images/bee.webp", "top": ""},
    ]
    out = tmp_path / "more"
    more.write(out, rows, packages.__getitem__)
    expected = {"ai/net/film.webp": ((450, 400), 120), "real/sea.webp": ((200, 300), 60), "real/hill.webp": ((427, 320), 30), "real/bee.webp": ((457, 320), 90)}
    for name, (size, grey) in expected.items():
        written = Image.open(out / name)
        assert written.size == size
        assert np.asarray(written).mean() == pytest.approx(grey, abs=2)
    with pytest.raises(FileExistsError, match="is not empty: give --out a new folder"):
        more.write(out, rows, packages.__getitem__)


def test_an_interrupted_fetch_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    rows = [{"file": f"real/{i}.webp", "package": "a.whl", "member": f"{i}.webp", "top": ""} for i in range(2)]
    package = wheel(tmp_path / "a.whl", {"0.webp": picture(300, 300, 9)})
    with pytest.raises(KeyError):
        more.write(tmp_path / "more", rows, lambda _: package)
    assert not (tmp_path / "more").exists()


def test_without_a_network_the_message_says_what_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise OSError("Could not resolve host: deb.debian.org")

    monkeypatch.setattr("pooch.retrieve", unreachable)
    with pytest.raises(SystemExit) as failure:
        more.main(["--out", str(tmp_path / "more")])
    assert failure.value.code == 1
    assert "deb.debian.org" in (said := capsys.readouterr().err)
    assert "alone makes a data set too" in said
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "mine.webp").touch()
    with pytest.raises(SystemExit):
        more.main(["--out", str(tmp_path / "more")])
    assert "within reach" not in (said := capsys.readouterr().err)
    assert "is not empty" in said


def test_the_lists_fit_the_packages_the_pack_and_each_other() -> None:
    files = [row["file"] for row in ROWS]
    assert len(set(files)) == len(files)
    assert [len(rows) for rows in LISTS] == [306, 383]  # the first is what the weights in ck/ were trained on: it does not grow
    assert {row["package"] for row in ROWS} | {small_clip.PACKAGE} == set(more.PACKAGES)
    assert not {Path(file).parts[1] for file in files if file.startswith("ai/")} & set(TEST_ONLY)
    assert not any("qwen" in row["member"].lower() for row in ROWS)  # relatives of a generator that the test split alone has
    plan = plan_sources(find([PACK / "real"], "photographs"), find([PACK / "ai"], "pictures"), [], TEST_ONLY, 0)
    held_out = {path.stem for split in ("validation", "test") for path in plan[split].photos}
    assert held_out.isdisjoint(Path(file).stem for file in files if file.startswith("real/"))
    attributed = (PACK / "ATTRIBUTION.csv").read_text()
    assert not any(Path(row["member"]).name in attributed for row in ROWS if row["file"].startswith("ai/"))
