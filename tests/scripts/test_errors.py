"""Bad input ends a script with one sentence: the value, what was expected, the fix."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train_SIDA
from tests.scripts.launch import ROOT, Ranks, environment
from tests.tiny import build_tiny_lisa, build_tiny_set


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("errors")
    build_tiny_lisa(root / "lisa")
    build_tiny_set(root / "set", per_class=1)
    return root


@pytest.mark.parametrize(("flags", "message"), [
    (["--num_classes", "4"], r"--num_classes is 4: only 3"),
    (["--load_in_4bit"], r"--load_in_4bit.*chat\.py"),
    (["--version", "LISA", "--dataset_dir", "nowhere", "--precision", "fp32"], r"no data set folder nowhere: expected"),
    (["--version", "nowhere", "--dataset_dir", "SET", "--precision", "fp32", "--eval_only"], r"no config\.json in nowhere"),
    (["--version", "LISA", "--dataset_dir", "SET", "--precision", "fp32", "--eval_only"], r"has no \[CLS\].*is this a SIDA checkpoint"),
    pytest.param(["--version", "LISA", "--dataset_dir", "SET"], r"fp16 needs a GPU: use --precision bf16 or fp32", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")),
])
def test_train_says_what_to_change(place: Path, flags: list[str], message: str) -> None:
    filled = [{"LISA": str(place / "lisa"), "SET": str(place / "set")}.get(word, word) for word in flags]
    with pytest.raises(SystemExit) as end:
        train_SIDA.main([*filled, "--log_base_dir", str(place / "runs")])
    assert str(end.value).startswith("error: ")
    assert re.search(message, str(end.value)), end.value


def flags_of(place: Path) -> list[object]:
    return ["--version", place / "lisa", "--dataset_dir", place / "set", "--precision", "fp32", "--log_base_dir", place / "runs", "--workers", 0]


def test_more_processes_than_batches(place: Path) -> None:
    well, output = Ranks(2, "train_SIDA", *flags_of(place), "--exp_name", "many", "--batch_size", 3, "--batch_mixing", "mixed").finish()
    assert not well
    assert "error: " in output
    assert "2" in output.split("error: ")[1].splitlines()[0]


def test_resume_of_something_else(place: Path) -> None:
    with pytest.raises(SystemExit, match="error: .* has no `latest`: a checkpoint folder holds"):
        train_SIDA.main([*map(str, flags_of(place)), "--exp_name", "resume", "--resume", str(place / "set")])


def test_chat_needs_neither_deepspeed_nor_bitsandbytes(place: Path) -> None:
    """As on a machine where they are not installed."""
    block = "import sys; sys.modules.update(dict.fromkeys(['deepspeed', 'bitsandbytes', 'torchvision', 'peft']))"
    call = f"import chat; chat.main(['--image', 'examples/SID_handful/test/real/bridge.jpg', '--vis_save_path', {str(place / 'vis')!r}])"
    done = subprocess.run([sys.executable, "-c", f"{block}; {call}"], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    assert "class: real" in done.stdout, done.stderr
