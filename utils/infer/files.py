"""Which pictures were meant, and reading them ahead of the model without holding too many at once."""

from __future__ import annotations

import glob
import os
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from PIL import Image

from utils.infer.intake import BROKEN, FORMATS, SUFFIXES, Oversized

T = TypeVar("T")
AHEAD = 64.0  # megapixels that may wait for the model
UNKNOWN = 16.0  # megapixels that a picture counts for until it is read
DOWNLOAD, PATIENCE = 100, 30  # megabytes and seconds


def find(arguments: Sequence[str], allow_url: bool = False) -> list[str]:
    """Paths and addresses of `arguments`, each once: files, folders (all pictures below), globs, .txt lists of any of these, addresses.

    A file that is not there is among them, for whoever reads it to say so. ValueError for an address without `allow_url`, and for nothing at all.
    """
    found = list(dict.fromkeys(name for argument in arguments for name in _expand(argument, allow_url)))
    if not found:
        raise ValueError(f"no pictures in {', '.join(map(repr, arguments))}: expected files that end in {' '.join(SUFFIXES)}")
    return found


def is_url(name: str) -> bool:
    """Whether `name` is an address."""
    return name.startswith(("http://", "https://"))


def _expand(argument: str, allow_url: bool) -> Iterator[str]:
    path = Path(argument)
    if is_url(argument):
        if not allow_url:
            raise ValueError(f"{argument} is an address: --allow_url lets this program fetch it")
        yield argument
    elif path.is_dir():
        yield from below(path)
    elif path.suffix.lower() == ".txt" and path.is_file():
        for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            if line.strip() and not line.startswith("#"):
                yield from _expand(line.strip(), allow_url)
    elif path.exists() or not glob.has_magic(argument):
        yield argument  # also what is not there: its record says so
    else:
        for match in sorted(glob.glob(argument, recursive=True)):  # noqa: PTH207 (Path.glob takes no absolute pattern)
            yield from below(Path(match)) if Path(match).is_dir() else (match,)


def below(folder: Path) -> Iterator[str]:
    """Every picture below `folder`, by its suffix; a folder that links lead to again is entered once."""
    entered = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders.sort()
        yield from (str(Path(root, name)) for name in sorted(files) if name.lower().endswith(SUFFIXES))


def fetch(url: str) -> bytes:
    """What is at `url`. OSError when it cannot be had, Oversized when it is larger than DOWNLOAD."""
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "SIDA predict.py"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            content = answer.read(DOWNLOAD * 2**20 + 1)
    except (urllib.error.URLError, ValueError, TimeoutError) as error:
        raise OSError(f"cannot fetch {url}: {error}") from error
    if len(content) > DOWNLOAD * 2**20:
        raise Oversized(f"{url} has more than {DOWNLOAD} MB")
    return content


def megapixels(name: str) -> float:
    """What the header says; UNKNOWN when there is none to read."""
    try:
        with Image.open(name, formats=FORMATS) as image:
            return image.width * image.height / 1e6
    except BROKEN:
        return UNKNOWN


def ahead(names: Iterable[str], read: Callable[[str], T], workers: int = 2) -> Iterator[T]:
    """`read(name)` for each of `names`, in order, on threads; what waits has at most AHEAD megapixels, or is a single picture."""
    waiting: deque[tuple[float, Future[T]]] = deque()
    with ThreadPoolExecutor(workers) as threads:
        for name in names:
            size = megapixels(name)
            while waiting and (len(waiting) > 4 * workers or sum(other for other, _ in waiting) + size > AHEAD):
                yield waiting.popleft()[1].result()
            waiting.append((size, threads.submit(read, name)))
        while waiting:
            yield waiting.popleft()[1].result()
