"""Train SIDA, either stage, or validate a checkpoint with --eval_only.

deepspeed --master_port=24999 train_SIDA.py --version ck/LISA-7B-v1 --vision_pretrained ck/sam_vit_h_4b8939.pth --dataset_dir SID_Set
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run with the flags `argv` (default: the command line's); returns the exit code, 0 also when stopped by a signal.

    Raises ValueError or FileNotFoundError, saying what to change, for flags, data or checkpoints that do not fit.
    """
    from utils.train.config import parse

    cfg = parse(argv)  # before the slow imports: --help and wrong flags answer at once

    from utils.distributed import is_main

    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if cfg.eval_only:
        from utils.train.evaluation import evaluate_only

        report = evaluate_only(cfg)
    else:
        from utils.train.trainer import Trainer

        report = Trainer(cfg).fit()
    if is_main():
        print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
