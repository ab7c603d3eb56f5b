"""The README's commands exist, with the flags that they are given."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import chat
import merge_lora_weights_and_save_hf_model as merge_script

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
BLOCKS = "\n".join(text for language, text in FENCED if not language).replace("\\\n", " ")
COMMANDS = [line for line in BLOCKS.splitlines() if re.match(r"(deepspeed|torchrun|python|sh|make|cd) ", line)]


def known_flags(script: str) -> str:
    if script.startswith("chat"):
        return chat.build_parser("sida").format_help()
    if script in ("predict.py", "app.py"):
        return importlib.import_module(script.removesuffix(".py")).build_parser().format_help()
    if script.startswith("merge"):
        return merge_script.build_parser().format_help()
    return (ROOT / ("evaluate_SIDA.py" if script.startswith("evaluate") else "utils/train/config.py")).read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str) -> None:
    if command.startswith("make "):
        assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        return
    if module := re.match(r"python -m ([a-z_.]+)", command):
        assert (ROOT / module[1].replace(".", "/")).with_suffix(".py").is_file()
        return
    script = next(word for word in command.split() if word.endswith((".py", ".sh")))
    assert script == "zero_to_fp32.py" or (ROOT / script).is_file()  # DeepSpeed puts that one into the checkpoint
    if script == "zero_to_fp32.py":
        return
    for flag in re.findall(r"--([a-z_0-9-]+)", command.split(script)[1]):
        assert flag.replace("-", "_") in known_flags(script).replace("-", "_"), f"{script} has no --{flag}"


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links(link: str) -> None:
    assert (ROOT / link).exists(), link
