"""Judge pictures: a verdict, a mask and a record for each.

python predict.py photo.jpg folder/ 'scans/*.tif' list.txt --out predictions

OUT/predictions.jsonl has one record per picture (docs/report.md), OUT/masks/ the masks (0/255) and overlays. Run again, it skips what is done.
Exit code: 0 when every picture was read, 2 when some were not (their records say why), 1 when nothing could be done.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # peft probes deepspeed at import; nothing here uses it

DEFAULT_VERSION = Path(__file__).resolve().parent / "ck" / "SIDA-tiny-description"  # app.py's too: one picture, one verdict


class Parser(argparse.ArgumentParser):
    """Exits with 1: 2 says that some pictures could not be read."""

    def error(self, message: str) -> NoReturn:
        """Say what was wrong."""
        self.exit(1, f"{self.format_usage()}error: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="picture, folder, glob, .txt list of these, or (--allow_url) address")
    add("--version", type=Path, default=DEFAULT_VERSION, help="checkpoint folder")
    add("--out", type=Path, default=Path("predictions"))
    add("--batch_size", type=int, default=8)
    add("--format", choices=("jsonl", "csv"), default="jsonl", help="csv: also OUT/predictions.csv")
    add("--explain", action="store_true", help="let the model say why (slower)")
    add("--threshold", type=float, help="fake when its probability is at least this; default: the likeliest class")
    add("--abstain", type=float, default=0.5, help="inconclusive when the verdict's probability is below this")
    add("--max_megapixels", type=float, default=100.0, help="larger pictures are refused")
    add("--allow_url", action="store_true", help="fetch addresses; otherwise nothing ever uses the network")
    add("--gps", action="store_true", help="keep the place where a picture was taken in its record")
    add("--views", type=int, help="looks at a picture, each a quarter turn further, that are averaged (1 to 4); default: the checkpoint's")
    add("--precision", choices=("fp32", "bf16", "fp16"), help="default: bf16 on a GPU, fp32 on a CPU")
    add("--device", help="cpu, cuda, cuda:1 ...; default: the GPU when there is one")
    add("--workers", type=int, default=2, help="threads that read pictures")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Judge what `argv` names; returns the exit code."""
    args = build_parser().parse_args(argv)
    try:
        return predict(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def predict(args: argparse.Namespace) -> int:
    """Write a record for each picture as soon as it is known."""
    from utils.infer.files import find
    from utils.infer.intake import allow

    allow(args.max_megapixels)
    names = find(args.paths, args.allow_url)

    import transformers
    from tqdm import tqdm

    from utils.infer.ledger import Ledger
    from utils.infer.pipeline import SidaPipeline
    from utils.infer.report import Rules, build, checkpoint, failure

    transformers.utils.logging.disable_progress_bar()
    rules = Rules(args.threshold, args.abstain, args.gps)
    pipe = SidaPipeline.from_pretrained(args.version, precision=args.precision, device=args.device, views=args.views)
    decode = "explain" if args.explain else "forced"
    asked = {"checkpoint": checkpoint(pipe), "decode": decode, "threshold": rules.threshold, "abstain": rules.abstain, "gps": rules.gps}
    ledger = Ledger(args.out, asked | {"views": pipe.model.config.views, "dtype": str(pipe.dtype)})
    counts: Counter[str] = Counter()
    bar = tqdm(total=len(names), unit="image", disable=not sys.stderr.isatty())

    def keep(record: dict[str, Any]) -> None:
        ledger.append(record)
        counts["unreadable" if "error" in record else record["verdict"]["label"]] += 1
        bar.write(line(record))
        bar.update()

    def readable() -> Iterator[Any]:
        for name, result in read(names, args, ledger.done):
            if isinstance(result, Exception):
                keep(failure(name, result))
            elif result is None:
                counts["done before"] += 1
                bar.update()
            else:
                yield result

    for prediction in pipe.stream(readable(), decode=decode, batch_size=args.batch_size, threshold=rules.threshold):
        saved = prediction.save(args.out / "masks", file_name(prediction.opened))
        relative = {kind: path and os.path.relpath(path, args.out) for kind, path in saved.items()}
        keep(build(pipe, prediction, rules, decode=decode, saved=relative))
    bar.close()
    table = f" and {ledger.write_table()}" if args.format == "csv" else ""
    print(f"{len(names)} pictures: {', '.join(f'{count} {name}' for name, count in counts.items())}; written to {args.out / 'predictions.jsonl'}{table}")
    return 2 if counts["unreadable"] else 0


def read(names: Sequence[str], args: argparse.Namespace, done: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """Each name with its Opened picture, None when its record is there already, or the error that says why it cannot be read."""
    from dataclasses import replace

    from utils.infer.files import ahead, fetch, is_url
    from utils.infer.intake import open_picture, read_file

    def one(name: str) -> tuple[str, Any]:
        try:
            if is_url(name) and name in done:
                return name, None
            content = fetch(name) if is_url(name) else read_file(Path(name))
            if done.get(name) == hashlib.sha256(content).hexdigest():
                return name, None
            return name, replace(open_picture(content, args.max_megapixels), name=name)
        except (ValueError, OSError) as error:
            return name, error

    return ahead(names, one, args.workers)


def file_name(opened: Any) -> str:
    """A name for its mask that no other picture's mask has."""
    stem = re.sub(r"[^\w.-]+", "_", Path(opened.name).stem, flags=re.ASCII)[:60]
    return f"{stem}-{hashlib.sha256(opened.content).hexdigest()[:12]}"


def line(record: dict[str, Any]) -> str:
    """One record in words."""
    name = record["file"]["name"].encode("utf-8", "replace").decode()
    if "error" in record:
        return f"{name}: cannot be read: {record['error']['reason']}"
    verdict, percent = record["verdict"], record["localization"]["tampered_percent"]
    strength = f", {verdict['evidence']} evidence" if verdict["evidence"] else f" (leaning {verdict['leaning']}; {'; '.join(verdict['reasons'])})"
    area = "" if percent is None else f", {percent:.1f} % of it marked in {record['localization']['mask']}"
    return f"{name}: {verdict['label']}{strength}, probability of a fake {record['probabilities']['fake']:.3f}{area}"


if __name__ == "__main__":
    sys.exit(main())
