"""Train SIDA, either stage, or validate a checkpoint with --eval_only.

deepspeed --master_port=24999 train_SIDA.py --version ck/LISA-7B-v1 --vision_pretrained ck/sam_vit_h_4b8939.pth --dataset_dir SID_Set
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run with the flags `argv` (default: the command line's); returns the exit code, 0 also when stopped by a signal.

    Flags, data or checkpoints that do not fit end it with one sentence that says what to change; an error in training itself is raised.
    """
    try:
        run = prepare(argv)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    report = run()
    if os.environ.get("RANK", "0") == "0":
        print(report)
    return 0


def prepare(argv: Sequence[str] | None) -> Callable[[], str]:
    """Everything up to the first step; returns what runs and reports."""
    from utils.train.config import parse

    cfg = parse(argv)  # before the slow imports: --help and wrong flags answer at once
    quiet_libraries()
    if cfg.eval_only:
        from utils.train.evaluation import prepare_evaluation

        return prepare_evaluation(cfg)
    from utils.train.trainer import Trainer

    return Trainer(cfg).fit


def quiet_libraries() -> None:
    """Our own log from INFO on, on the first rank; libraries speak up from warnings or errors on."""
    from transformers.utils.logging import disable_progress_bar

    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
