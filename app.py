"""The web page and the HTTP endpoint, on this machine only unless --host says otherwise.

python app.py                                               then open http://127.0.0.1:7860
curl -F image=@photo.jpg http://127.0.0.1:7860/api/predict
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # peft probes deepspeed at import; nothing here uses it
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent
FONTS = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--version", type=Path, default=ROOT / "ck" / "SIDA-tiny-description", help="checkpoint folder")
    add("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in: there is no password")
    add("--port", type=int, default=7860)
    add("--views", type=int, help="looks at a picture, each a quarter turn further, that are averaged (1 to 4); default: the checkpoint's")
    add("--precision", choices=("fp32", "bf16", "fp16"), help="default: bf16 on a GPU, fp32 on a CPU")
    add("--device", help="cpu, cuda, cuda:1 ...; default: the GPU when there is one")
    add("--threshold", type=float, help="fake when its probability is at least this; default: the likeliest class")
    add("--abstain", type=float, default=0.5, help="inconclusive when the verdict's probability is below this")
    add("--max_megabytes", type=float, default=20.0)
    add("--max_megapixels", type=float, default=50.0)
    add("--queue", type=int, default=16, help="so many requests may wait; more are told to come back")
    return parser


def make_app(args: argparse.Namespace) -> object:
    """Page and endpoint as one ASGI application."""
    import gradio as gr
    import transformers

    from utils.infer.intake import allow
    from utils.infer.page import page
    from utils.infer.pipeline import SidaPipeline
    from utils.infer.report import Rules
    from utils.infer.service import Limits, Service, api

    allow(args.max_megapixels)
    transformers.utils.logging.disable_progress_bar()
    pipe = SidaPipeline.from_pretrained(args.version, precision=args.precision, device=args.device, views=args.views)
    limits = Limits(megabytes=args.max_megabytes, megapixels=args.max_megapixels, waiting=args.queue)
    service = Service(pipe, Rules(args.threshold, args.abstain), limits)
    examples = [str(path) for path in sorted((ROOT / "examples" / "SID_handful" / "test").glob("[!m]*/*.jpg"))]
    theme = gr.themes.Default(font=list(FONTS[0]), font_mono=list(FONTS[1]))  # the theme's own fonts are Google's
    return gr.mount_gradio_app(
        api(service),
        page(service, examples),
        path="/",
        server_name=args.host,
        server_port=args.port,
        footer_links=[],
        max_file_size=f"{int(args.max_megabytes * 1024)}kb",
        ssr_mode=False,
        theme=theme,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until interrupted; 1 with a message when something does not fit."""
    args = build_parser().parse_args(argv)
    try:
        import uvicorn

        app = make_app(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"SIDA is at http://{args.host}:{args.port} (POST /api/predict for programs). Ctrl-C ends it.", flush=True)
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning")
    return 0


if __name__ == "__main__":
    sys.exit(main())
