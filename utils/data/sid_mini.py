"""SID_Mini: a small SID_Set made from photographs.

    python -m utils.data.sid_mini --out data/SID_Mini
    python -m utils.data.sid_mini --out data/mine --photos ~/Pictures --ai ~/generated
    python -m utils.data.more --out data/more
    python -m utils.data.sid_mini --out data/SID_More --train_photos data/more/real --train_ai data/more/ai

Every picture, of whatever class, walks one way: a random crop at a random scale, half the time an earlier JPEG, what its class is about, a mild
filter, one final JPEG. Sources belong to one split. Some kinds and generators appear in the test split only.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.random import Generator
from PIL import Image
from tqdm import tqdm

from model.types import Label
from utils.data.describe import describe
from utils.data.resynthesis import Upscaler
from utils.data.tamper import FILTERS, KINDS, Donors, tamper
from utils.data.transforms import IMAGE_SUFFIXES, read_rgb

PACK = Path(__file__).resolve().parents[2] / "examples" / "photos"
SPLITS = {"train": 0.7, "validation": 0.1, "test": 0.2}  # share of the sources
TEST_ONLY = ("seamless_clone", "esrgan-medium-x4", "qwen-image")
LEAST_CROP = 180  # pixels of the source
EVALUATED = 300  # most pictures per class of validation and of test
PHOTOS, AI = "photographs", "generated pictures"


@dataclass(frozen=True)
class Sources:
    """What one split is made from."""

    photos: tuple[Path, ...]
    ai: tuple[Path, ...]  # .../<generator>/<name>
    nets: tuple[Path, ...]
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """One picture to make."""

    folder: Path
    label: Label
    number: int
    size: int
    seed: tuple[int, ...]
    sources: Sources


def find(folders: Sequence[Path], what: str) -> list[Path]:
    """All pictures below `folders`, sorted. Raises FileNotFoundError for a missing folder, ValueError when there are none."""
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder} of {what}: check the path")
    found = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise ValueError(f"no picture in {', '.join(map(str, folders))}: expected {what} ending in {', '.join(IMAGE_SUFFIXES)}")
    return found


def usable(path: Path) -> bool:
    """Whether `path` can be read and is large enough to cut from."""
    try:
        return min(read_rgb(path).shape[:2]) >= LEAST_CROP
    except ValueError:
        return False


def _pictures(folders: Sequence[Path], what: str) -> list[Path]:
    return [path for path in find(folders, what) if usable(path)] if folders else []


def share_out(paths: Sequence[Path], seed: int) -> dict[str, tuple[Path, ...]]:
    """Each path in one split, by the hash of its name, so that adding a file moves no other far. ValueError for fewer than three."""
    if len(paths) < len(SPLITS):
        raise ValueError(f"{len(paths)} usable pictures (at least {LEAST_CROP} pixels a side): expected at least {len(SPLITS)}, one for each split")
    order = sorted(paths, key=lambda path: zlib.crc32(f"{seed},{path.parent.name}/{path.name}".encode()))
    test, validation = (max(1, round(SPLITS[split] * len(order))) for split in ("test", "validation"))
    return {"test": tuple(order[:test]), "validation": tuple(order[test : test + validation]), "train": tuple(order[test + validation :])}


def plan_sources(photos: Sequence[Path], ai: Sequence[Path], nets: Sequence[Path], test_only: Sequence[str], seed: int) -> dict[str, Sources]:
    """Split name -> what it is made from; `test_only` names manipulation kinds, nets and generators."""
    shared = [path for path in ai if path.parent.name not in test_only]
    by_photo, by_ai = share_out(photos, seed), share_out(shared, seed)
    by_ai["test"] += tuple(path for path in ai if path.parent.name in test_only)
    return {
        split: Sources(
            by_photo[split],
            by_ai[split],
            tuple(net for net in nets if split == "test" or net.stem not in test_only),
            tuple(kind for kind in KINDS if split == "test" or kind not in test_only),
        )
        for split in SPLITS
    }


def gather(
    photos: Sequence[Path], ai: Sequence[Path], train_photos: Sequence[Path], train_ai: Sequence[Path], test_only: Sequence[str], seed: int
) -> dict[str, Sources]:
    """`plan_sources` of what lies in folders; errors as `find` and `share_out`.

    What lies in `train_photos` and `train_ai` goes to the train split, and moves nothing in the others.
    """
    plan = plan_sources(_pictures(photos, PHOTOS), _pictures(ai, AI), sorted((PACK / "nets").glob("*.safetensors")), test_only, seed)
    train = plan["train"]
    more = replace(train, photos=(*train.photos, *_pictures(train_photos, PHOTOS)), ai=(*train.ai, *_pictures(train_ai, AI)))
    return {**plan, "train": more}


def turn(items: tuple[Any, ...], number: int) -> Any:
    """Round and round."""
    return items[number % len(items)]


@functools.lru_cache(maxsize=400)
def _pixels(path: Path) -> np.ndarray:
    return read_rgb(path)


@functools.lru_cache(maxsize=8)
def _upscaler(path: Path) -> Upscaler:
    return Upscaler(path)


def cut(path: Path, task: Task, rng: Generator) -> np.ndarray:
    """A random square of `path`, flipped at random, resized to [size, size, 3] by a random filter, half the time JPEG-compressed."""
    rgb = _pixels(path)
    # AI pictures have other sizes than photographs: the scale must not tell, so it is drawn as for a photograph
    ruler = _pixels(task.sources.photos[rng.integers(len(task.sources.photos))]).shape[:2]
    longest = min(*ruler, *rgb.shape[:2])
    side = int(np.exp(rng.uniform(*np.log([LEAST_CROP, longest + 1]))))
    top, left = (int(rng.integers(extent - side + 1)) for extent in rgb.shape[:2])
    square = rgb[top : top + side, left : left + side]
    if rng.random() < 0.5:
        square = square[:, ::-1]
    picture = np.asarray(Image.fromarray(square).resize((task.size, task.size), FILTERS[rng.integers(len(FILTERS))]))
    return jpeg(picture, int(rng.integers(70, 99)), rng) if rng.random() < 0.5 else picture


def jpeg(rgb: np.ndarray, quality: int, rng: Generator) -> np.ndarray:
    """`rgb` as it comes back from a JPEG file, chroma halved or not."""
    return cv2.cvtColor(cv2.imdecode(_encode(rgb, quality, rng), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def _encode(rgb: np.ndarray, quality: int, rng: Generator) -> np.ndarray:
    sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420 if rng.random() < 0.5 else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    return cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), flags)[1]


def finish(rgb: np.ndarray, rng: Generator) -> np.ndarray:
    """The way every picture ends, as bytes of a JPEG file: sometimes a mild blur or sharpening, then quality 88 to 98."""
    chance = rng.random()
    if chance < 0.15:
        rgb = cv2.GaussianBlur(rgb, (0, 0), rng.uniform(0.3, 0.6))
    elif chance < 0.3:
        rgb = cv2.addWeighted(rgb, 1.5, cv2.GaussianBlur(rgb, (0, 0), 1.0), -0.5, 0)
    return _encode(rgb, int(rng.integers(88, 99)), rng)


def make(task: Task) -> dict[str, object]:
    """Write one picture (and mask), return its line of the manifest. Depends on nothing but the task."""
    torch.set_num_threads(1)
    rng, sources = np.random.default_rng(task.seed), task.sources
    record: dict[str, object] = {"file": f"{task.label.title}/{task.number:05d}.jpg", "label": task.label.title}
    if task.label is Label.FULL_SYNTHETIC:
        rgb = _synthesise(task, record, rng)
    else:
        photo = turn(sources.photos, task.number)
        record["source"] = photo.name
        rgb = cut(photo, task, rng)
    if task.label is Label.TAMPERED:
        rgb = _tamper(rgb, task, record, rng)
    record["description"] = str(describe(task.label, record))
    target = task.folder / str(record["file"])
    target.write_bytes(finish(rgb, rng).tobytes())
    return record


def _synthesise(task: Task, record: dict[str, object], rng: Generator) -> np.ndarray:
    half, odd = divmod(task.number, 2)
    if odd:
        picture = turn(task.sources.ai, half)
        record.update(source=_generated(picture), generator=picture.parent.name)
        return cut(picture, task, rng)
    photo = turn(task.sources.photos, half)
    net = _upscaler(turn(task.sources.nets, half + half // len(task.sources.photos)))  # another one each round
    record.update(source=photo.name, generator=net.name)
    painted = net.repaint(cut(photo, task, rng), FILTERS[rng.integers(len(FILTERS))])
    return jpeg(painted, int(rng.integers(70, 99)), rng) if rng.random() < 0.5 else painted


def _generated(picture: Path) -> str:
    return f"{picture.parent.name}/{picture.name}"  # generators share names of pictures


def _tamper(rgb: np.ndarray, task: Task, record: dict[str, object], rng: Generator) -> np.ndarray:
    sources, used = task.sources, {}

    def draw(paths: tuple[Path, ...]) -> np.ndarray:
        used["donor"] = paths[rng.integers(len(paths))]
        return cut(used["donor"], task, rng)

    def repaint(picture: np.ndarray) -> np.ndarray:
        used["donor"] = sources.nets[rng.integers(len(sources.nets))]
        return _upscaler(used["donor"]).repaint(picture, FILTERS[rng.integers(len(FILTERS))])

    others = tuple(photo for photo in sources.photos if photo.name != record["source"]) or sources.photos
    donors = Donors(lambda: draw(others), lambda: draw(sources.ai), repaint)
    first = task.number + task.number // len(sources.photos)  # each round a photograph gets another kind
    for attempt in range(len(sources.kinds)):  # a blank picture may resist one kind, not all
        kind = turn(sources.kinds, first + attempt)
        done = tamper(rgb, kind, donors, rng)
        if done is not None:
            break
    else:
        raise ValueError(f"no manipulation changes {record['source']} visibly: is it blank? Remove it.")
    mask = task.folder / "masks" / f"{task.number:05d}_mask.png"
    cv2.imwrite(str(mask), done.mask.astype(np.uint8) * 255)
    y, x = (float(axis.mean() / task.size) for axis in np.nonzero(done.mask))
    record.update(kind=kind, area=round(float(done.mask.mean()), 4), centre=[round(x, 3), round(y, 3)])
    if "donor" in used:
        donor = used["donor"]
        record["donor"] = {"gan_patch": donor.stem, "splice_ai": _generated(donor)}.get(kind, donor.name)
    return done.rgb


@contextmanager
def made_whole(out: Path) -> Iterator[Path]:
    """A folder to write to that becomes `out` when all went well. FileExistsError when `out` already holds something."""
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty: give --out a new folder, or delete it")
    partial = out.with_name(f"{out.name}.part")
    shutil.rmtree(partial, ignore_errors=True)  # an interrupted build's
    yield partial
    partial.replace(out)


def build(out: Path, plan: Mapping[str, Sources], *, size: int, per_class: int, seed: int, workers: int) -> None:
    """Write the data set; errors as `made_whole`, ValueError for a size that does not do."""
    if size < 64 or per_class < 1:
        raise ValueError(f"--size is {size}, --per_class {per_class}: expected at least 64 and 1")
    with made_whole(out) as partial:
        for number, (split, sources) in enumerate(plan.items()):
            folder = partial / split
            for name in (*(label.title for label in Label), "masks", "description"):
                (folder / name).mkdir(parents=True)
            count = per_class if split == "train" else min(EVALUATED, max(1, per_class // 4))
            tasks = [Task(folder, label, i, size, (seed, number, int(label), i), sources) for i in range(count) for label in Label]
            with ProcessPoolExecutor(workers) as pool:
                records = list(tqdm(pool.map(make, tasks, chunksize=16), total=len(tasks), desc=split, unit="picture"))
            write_texts(folder, records)


def write_texts(folder: Path, records: Sequence[dict[str, object]]) -> None:
    """manifest.jsonl: where each picture comes from; description/*.json: what SID_Set has."""
    (folder / "manifest.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for label in Label:
        texts = {Path(str(record["file"])).name: record["description"] for record in records if record["label"] == label.title}
        (folder / "description" / f"{label.title}_GT.json").write_text(json.dumps(texts, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Build SID_Mini from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--photos", type=Path, nargs="+", default=[PACK / "real"], help="folders of photographs; default: the 138 in examples/photos")
    parser.add_argument("--ai", type=Path, nargs="+", default=[PACK / "ai"], help="folders <generator>/<picture>; default: the 68 in examples/photos")
    parser.add_argument("--train_photos", type=Path, nargs="+", default=[], help="folders of more photographs, for the train split alone")
    parser.add_argument("--train_ai", type=Path, nargs="+", default=[], help="folders <generator>/<picture> of more, for the train split alone")
    parser.add_argument("--size", type=int, default=384, help="side of the pictures, pixels")
    parser.add_argument("--per_class", type=int, default=600, help=f"train pictures of a class; validation and test get a quarter, at most {EVALUATED}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test_only", nargs="*", default=list(TEST_ONLY), help="manipulation kinds, nets and generators kept for the test split")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args(argv)
    try:
        plan = gather(args.photos, args.ai, args.train_photos, args.train_ai, args.test_only, args.seed)
        build(args.out, plan, size=args.size, per_class=args.per_class, seed=args.seed, workers=args.workers)
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
