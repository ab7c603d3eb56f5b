"""Ask SIDA about pictures: a prompt loop, or one shot with --image."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # peft probes deepspeed at import; chat never uses it

CK = Path(__file__).resolve().parent / "ck"
DEFAULT_VERSION = {"sida": str(CK / "SIDA-tiny"), "description": str(CK / "SIDA-tiny-description")}
PROMPT = "Please answer begin with [CLS] for classification, if the image is  tampered, ouput mask the tampered region."


COMMANDS = ("/image", "/prompt", "/mask", "/report", "/help", "/quit")
HELP = """/image PATH    load a picture and keep it: from now on only prompts are asked for
/prompt TEXT   what an empty prompt asks
/mask          show the mask of the last answer, or say where it is
/report        write the last answer as a JSON report
/help  /quit   Ctrl-C stops an answer, Ctrl-D leaves, Tab completes paths"""
DECODE_HELP = (
    "explain: the class head's verdict opens the text (default where the checkpoint has experts); "
    "generate: the model writes all of it (otherwise); forced: no text; reference repeats the original's evaluate()"
)


def build_parser(stage: str) -> argparse.ArgumentParser:
    """The original's flags and names; `stage` sets the description script's defaults."""
    onoff = argparse.BooleanOptionalAction
    parser = argparse.ArgumentParser(description="SIDA chat", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--version", default=DEFAULT_VERSION[stage], help="folder of a SIDA checkpoint")
    add("--vis_save_path", default="./vis_output", help="where masks and overlays go")
    add("--views", type=int, help="looks at a picture, each a quarter turn further, that are averaged (1 to 4); default: the checkpoint's")
    add("--precision", choices=["fp32", "bf16", "fp16"], help="default: bf16 on a GPU, fp32 on a CPU")
    add("--image_size", type=int, help="SAM's input in pixels; default: the checkpoint's")
    add("--model_max_length", type=int, default=512 if stage == "sida" else 1024, help="most new tokens of an answer")
    add("--vision-tower", "--vision_tower", dest="vision_tower", help="folder or hub name; default: the checkpoint's")
    add("--load_in_8bit", action=onoff, default=False, help="quantise the language model to 8 bits")
    add("--load_in_4bit", action=onoff, default=False, help="quantise the language model to 4 bits (nf4)")
    add("--conv_type", choices=["llava_v1", "llava_llama_2"], help="default: the checkpoint's")
    add("--device", help="cpu, cuda, cuda:1 ...; default: the GPU when there is one")
    add("--decode", choices=["generate", "explain", "forced", "reference"], help=DECODE_HELP)
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


class Live:
    """Prints a growing text piece by piece."""

    shown = ""

    def __call__(self, text: str) -> None:
        """Print what `text` has more than last time; the start of a character of several tokens waits for its rest."""
        if text.startswith(self.shown) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            print(text[len(self.shown) :] if self.shown else f"text_output:  {text}", end="", flush=True)
            self.shown = text


class Chat:
    """Questions about pictures, at a terminal or through a pipe. The picture stays loaded until another is named."""

    def __init__(self, pipe: Any, args: argparse.Namespace, stage: str) -> None:
        self.pipe, self.args, self.stage, self.decode = pipe, args, stage, args.decode or pipe.decode
        self.path, self.seen, self.kept = "", None, False  # kept: /image chose it, so its path is not asked for
        self.prompt: str | None = args.prompt
        self.result, self.saved = None, {}

    def run(self) -> None:
        """Prompt, path, answer, again and again until the input ends or /quit."""
        while True:
            line = self.read("Please input your prompt: ")
            if line is not None and line.startswith("/"):
                print(f"no command {line.split()[0]}: /help lists them", file=sys.stderr)
            elif line is not None:
                self.answer(line or self.prompt, None if self.kept else self.ask_image())

    def read(self, message: str) -> str | None:
        """One line, which a terminal may edit; None when it was one of COMMANDS, which is carried out."""
        if sys.stdin.isatty():
            line = input(message).strip()
        else:  # the prompt goes to stderr so that stdout holds answers only
            print(message, end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
            if not line:
                raise EOFError
            line = line.strip()
        command, _, rest = line.partition(" ")
        if command not in COMMANDS:
            return line
        self.obey(command, rest.strip())
        return None

    def ask_image(self) -> str | None:
        """A path that exists, asked for until there is one; None keeps the picture."""
        while True:
            path = self.read(f"Please input the image path{f' [{self.path}]' if self.path else ''}: ")
            if (path is None and self.kept) or (path == "" and self.path):
                return None
            if path and Path(path).is_file():
                return path
            if path is not None:
                print(f"File not found in {path}", file=sys.stderr)

    def obey(self, command: str, rest: str) -> None:
        """Carry out one of COMMANDS."""
        if command == "/quit":
            raise EOFError
        if command == "/image" and rest:
            self.kept = self.look(rest)
        elif command == "/prompt":
            self.prompt = rest or self.prompt
            print(f"an empty prompt asks: {self.prompt or 'the question that the checkpoint was trained on'}")
        elif command in ("/mask", "/report") and self.result is None:
            print("ask about a picture first")
        elif command == "/mask":
            self.show_mask()
        elif command == "/report":
            self.write_report()
        else:
            print(HELP)

    def look(self, path: str) -> bool:
        """Load a picture; says why not when it does not do."""
        try:
            self.seen, self.path = self.pipe.look(path), path
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return False
        return True

    def answer(self, prompt: str | None, path: str | None) -> None:
        """Print the text (on a terminal while it is written), the class and the paths of what was saved. Ctrl-C stops it."""
        if path is not None and not self.look(path):
            return
        live = Live() if self.decode in ("generate", "explain") and sys.stdout.isatty() else None
        try:
            result = self.pipe(self.seen, prompt, decode=self.decode, max_new_tokens=self.args.model_max_length, on_text=live)
        except KeyboardInterrupt:
            print("\nstopped")
            return
        except ValueError as error:  # this prompt does not do; the next may
            print(f"error: {error}", file=sys.stderr)
            return
        text = remove_repeated_tags(result.text) if self.stage == "description" else result.text
        if live is not None:
            print()
        if live is None or live.shown.strip() != text:
            print("text_output: ", text)
        probs = "  ".join(f"{title} {value:.3f}" for title, value in result.probs.items())
        label = result.label.title if result.label is not None else "none: no [CLS] in prompt or answer"
        print(f"class: {label}  ({probs})  {result.seconds:.2f} s")
        self.result, self.saved = result, result.save(self.args.vis_save_path, Path(self.path).stem)
        for file in filter(None, self.saved.values()):
            print(f"{file} has been saved.")
        if sys.stdout.isatty() and result.mask is not None:
            self.show_mask(quiet=True)
        if self.args.json:
            print(json.dumps(result.to_dict() | {"text": text, "image": self.path, **self.saved}))

    def show_mask(self, quiet: bool = False) -> None:
        """The overlay, in a terminal that can show it; otherwise (unless `quiet`) where it is."""
        from utils.infer.terminal import picture_escape

        if self.result.mask is None:
            print("nothing is marked")
        elif escape := picture_escape(self.result.overlay(), os.environ):
            print(escape)
        elif not quiet:
            print(self.saved["overlay"])

    def write_report(self) -> None:
        """The record of the last answer, beside its mask."""
        from utils.infer.report import Rules, build

        path = Path(self.args.vis_save_path) / f"{Path(self.path).stem}_report.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(build(self.pipe, self.result, Rules(), decode=self.decode, saved=self.saved), indent=1) + "\n")
        print(path)


def load(args: argparse.Namespace) -> object:
    """The pipeline of the command line."""
    import transformers

    from utils.infer.pipeline import SidaPipeline

    transformers.utils.logging.disable_progress_bar()
    bits = 4 if args.load_in_4bit else 8 if args.load_in_8bit else None
    chosen = {"vision_tower": args.vision_tower, "conv_type": args.conv_type, "image_size": args.image_size, "views": args.views}
    return SidaPipeline.from_pretrained(args.version, precision=args.precision, device=args.device, bits=bits, **chosen)


def main(argv: list[str] | None = None, stage: str = "sida") -> int:
    """Run the chat; 0 after the last answer, 1 with a message when something did not fit."""
    args = build_parser(stage).parse_args(argv)
    try:
        chat = Chat(load(args), args, stage)
        if args.image:
            return one_shot(chat, args.image)
        if sys.stdin.isatty():
            from utils.infer.terminal import edit_lines

            edit_lines(COMMANDS)
            print("/help lists the commands; Ctrl-D leaves.")
        if args.prompt:
            chat.answer(args.prompt, chat.ask_image())
            return 0
        chat.run()
    except (EOFError, KeyboardInterrupt):
        return 0
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def one_shot(chat: Chat, paths: list[str]) -> int:
    """Answer about each; 1 when one could not be."""
    for path in paths:
        if len(paths) > 1:
            print(f"\n{path}")
        chat.answer(chat.prompt, path)
        if chat.path != path:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
