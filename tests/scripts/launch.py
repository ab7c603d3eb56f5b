"""Run a script as a user does: in its own process, or under the deepspeed launcher."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
STEPS = 6  # of a run with train_flags


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def environment() -> dict[str, str]:
    """A clean environment: nothing that a launcher set in this process leaks into the next."""
    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in launcher}
    return kept | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PATH": f"{BIN}:{os.environ['PATH']}"}


def deepspeed(processes: int, script: str, *argv: object, **options: object) -> subprocess.Popen[str]:
    """Start `deepspeed --num_gpus N script argv...`; stdout and stderr together on a pipe, in a process group of its own."""
    command = [str(BIN / "deepspeed"), f"--num_gpus={processes}", f"--master_port={free_port()}", script, *map(str, argv)]
    return subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, **options)


def together(processes: int, script: str, *argv: object) -> str:
    """What all ranks of `python script argv...` print; they must succeed. As under a launcher, whose own start takes as long as theirs."""
    world = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, script, *map(str, argv)]
    with tempfile.TemporaryFile("w+") as output:
        env = [environment() | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
        ranks = [subprocess.Popen(command, cwd=ROOT, env=of_rank, stdout=output, stderr=subprocess.STDOUT) for of_rank in env]
        deadline = time.monotonic() + 300
        while (codes := {rank.poll() for rank in ranks}) != {0} and codes <= {None, 0} and time.monotonic() < deadline:
            time.sleep(0.05)
        for rank in ranks:  # when one has failed, the others wait for it
            rank.kill()
        output.seek(0)
        printed = output.read()
    assert {rank.wait() for rank in ranks} == {0}, printed[-4000:]
    return printed


def run(command: list[object], cwd: Path = ROOT, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run to the end; the output is in the assertion when it fails."""
    return subprocess.run(list(map(str, command)), cwd=cwd, env=environment(), capture_output=True, text=True, input=text, timeout=300)


def finish(process: subprocess.Popen[str]) -> str:
    """The output of a started script that must succeed."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-4000:]
    return output


def train_flags(place: Path, name: str) -> list[object]:
    """A short training of the fixture `place`, named `name` in its `runs`."""
    where = ["--version", place / "lisa", "--dataset_dir", place / "set", "--val_dataset", place / "set", "--vision_pretrained", place / "lisa" / "sam.pth"]
    where += ["--log_base_dir", place / "runs", "--exp_name", name, "--vis_save_path", place / "vis"]
    size = ["--precision", "fp32", "--batch_size", 1, "--grad_accumulation_steps", 2, "--epochs", 2, "--steps_per_epoch", STEPS // 2, "--workers", 1]
    return [*where, *size, "--lr", 0.001, "--warmup_steps", 2, "--save_steps", 1, "--val_batch_size", 2, "--augment"]


def log_of(place: Path, name: str) -> list[dict]:
    """What a run logged per step, without its wall times."""
    rows = [json.loads(line) for line in (place / "runs" / name / "log.jsonl").read_text().splitlines()]
    timed = ("images_per_second", "seconds", "data_seconds")
    return [{key: value for key, value in row.items() if key not in timed} for row in rows if "loss" in row]
