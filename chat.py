"""Ask SIDA about pictures: a prompt loop, or one shot with --image."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # peft probes deepspeed at import; chat never uses it

DEFAULT_VERSION = str(Path(__file__).resolve().parent / "ck" / "SIDA-tiny")
PROMPT = "Please answer begin with [CLS] for classification, if the image is  tampered, ouput mask the tampered region."


DECODE_HELP = "explain: the class head's verdict opens the text; forced: no text; reference repeats the original's evaluate()"


def build_parser(stage: str) -> argparse.ArgumentParser:
    """The original's flags and names; `stage` sets the description script's defaults."""
    onoff = argparse.BooleanOptionalAction
    parser = argparse.ArgumentParser(description="SIDA chat", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--version", default=DEFAULT_VERSION, help="folder of a SIDA checkpoint")
    add("--vis_save_path", default="./vis_output", help="where masks and overlays go")
    add("--precision", choices=["fp32", "bf16", "fp16"], help="default: bf16 on a GPU, fp32 on a CPU")
    add("--image_size", type=int, help="SAM's input in pixels; default: the checkpoint's")
    add("--model_max_length", type=int, default=512 if stage == "sida" else 1024, help="most new tokens of an answer")
    add("--vision-tower", "--vision_tower", dest="vision_tower", help="folder or hub name; default: the checkpoint's")
    add("--load_in_8bit", action=onoff, default=False, help="quantise the language model to 8 bits")
    add("--load_in_4bit", action=onoff, default=False, help="quantise the language model to 4 bits (nf4)")
    add("--conv_type", choices=["llava_v1", "llava_llama_2"], help="default: the checkpoint's")
    add("--device", help="cpu, cuda, cuda:1 ...; default: the GPU when there is one")
    add("--decode", choices=["generate", "explain", "forced", "reference"], default="generate", help=DECODE_HELP)
    add("--prompt", help="ask this once and leave (with --image)")
    add("--image", nargs="+", help="answer about these pictures and leave")
    add("--json", action=onoff, default=False, help="end with one JSON object per picture, the last line of stdout")
    for flag, why in (("--lora_r", "adapters are merged"), ("--local-rank", "one process"), ("--use_mm_start_end", "always on")):
        add(flag, nargs="?", const="true", help=f"accepted for old command lines; no effect ({why})")
    return parser


def remove_repeated_tags(text: str) -> str:
    """Drop a later `<tag> content` that repeats an earlier one, as the original's description chat does."""
    found = list(re.finditer(r"<([^>]+)>([^<]+)", text))
    if not found:
        return text
    kept: dict[tuple[str, str], str] = {}
    for match in found:
        kept.setdefault((match[1], match[2].strip()), match[0])
    return text[: text.index(f"<{found[0][1]}>")] + "".join(kept.values())


def ask(message: str) -> str:
    """One line from the terminal or a pipe; the prompt goes to stderr so that stdout holds answers only."""
    print(message, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.strip()


def ask_image() -> str:
    """A path that exists; asks again until there is one."""
    while not Path(path := ask("Please input the image path: ")).is_file():
        print(f"File not found in {path}", file=sys.stderr)
    return path


class Live:
    """Prints a growing text piece by piece."""

    shown = ""

    def __call__(self, text: str) -> None:
        """Print what `text` has more than last time; the start of a character of several tokens waits for its rest."""
        if text.startswith(self.shown) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            print(text[len(self.shown) :] if self.shown else f"text_output:  {text}", end="", flush=True)
            self.shown = text


def answer(pipe: object, path: str, prompt: str | None, args: argparse.Namespace, stage: str) -> None:
    """Print the text (on a terminal while it is written), the class and the paths of what was saved."""
    live = Live() if args.decode in ("generate", "explain") and sys.stdout.isatty() else None
    result = pipe(path, prompt, decode=args.decode, max_new_tokens=args.model_max_length, on_text=live)
    text = remove_repeated_tags(result.text) if stage == "description" else result.text
    if live is not None:
        print()
    if live is None or live.shown.strip() != text:
        print("text_output: ", text)
    probs = "  ".join(f"{title} {value:.3f}" for title, value in result.probs.items())
    label = result.label.title if result.label is not None else "none: no [CLS] in prompt or answer"
    print(f"class: {label}  ({probs})  {result.seconds:.2f} s")
    saved = result.save(args.vis_save_path, Path(path).stem)
    for file in filter(None, saved.values()):
        print(f"{file} has been saved.")
    if args.json:
        record = result.to_dict() | {"text": text, "image": path, **saved}
        print(json.dumps(record))


def load(args: argparse.Namespace) -> object:
    """The pipeline of the command line."""
    import transformers

    from utils.infer.pipeline import SidaPipeline

    transformers.utils.logging.disable_progress_bar()
    bits = 4 if args.load_in_4bit else 8 if args.load_in_8bit else None
    chosen = {"vision_tower": args.vision_tower, "conv_type": args.conv_type, "image_size": args.image_size}
    return SidaPipeline.from_pretrained(args.version, precision=args.precision, device=args.device, bits=bits, **chosen)


def main(argv: list[str] | None = None, stage: str = "sida") -> int:
    """Run the chat; 0 after the last answer, 1 with a message when something did not fit."""
    args = build_parser(stage).parse_args(argv)
    try:
        pipe = load(args)
        if args.image or args.prompt:
            for path in args.image or [ask_image()]:
                if len(args.image or ()) > 1:
                    print(f"\n{path}")
                answer(pipe, path, args.prompt, args, stage)
            return 0
        while True:
            prompt = ask("Please input your prompt: ")
            try:
                answer(pipe, ask_image(), prompt or None, args, stage)
            except ValueError as error:  # this picture or prompt does not do; the next may
                print(f"error: {error}", file=sys.stderr)
    except EOFError:
        return 0
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
