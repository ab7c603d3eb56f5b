"""Run a script as a user does: in its own process, or under the deepspeed launcher; or, for the sake of time, as ranks without one."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
STEPS = 6  # of a run with train_flags
WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(["deepspeed", "utils.train.trainer", "utils.train.evaluation", "train_SIDA", "evaluate_SIDA"])


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


class Ranks:
    """The ranks of one job, each a process that calls `main` of a script. As under a launcher, but forked from a process that has imported what takes seconds."""

    def __init__(self, count: int, script: str, *argv: object) -> None:
        self.output = tempfile.NamedTemporaryFile("r")  # noqa: SIM115  as long as this object lives
        world = environment() | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        of_rank = [world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
        self.processes = [WARM.Process(target=_rank, args=(script, list(map(str, argv)), env, self.output.name)) for env in of_rank]
        for process in self.processes:
            process.start()

    @property
    def running(self) -> bool:
        """False once all are done, or one has failed."""
        codes = {process.exitcode for process in self.processes}
        return codes != {0} and codes <= {None, 0}

    def kill(self) -> None:
        """Nothing goes on, of what they have started either."""
        for process in self.processes:
            with suppress(ProcessLookupError):  # it has ended
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()  # or has not yet come to lead a group
            process.join()

    def finish(self, seconds: float = 300) -> tuple[bool, str]:
        """Whether all ended well in time, and what they printed."""
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:
            time.sleep(0.05)
        well = not self.running and {process.exitcode for process in self.processes} == {0}
        self.kill()  # when one has failed, the others wait for it
        return well, self.output.read()


def _rank(script: str, argv: list[str], env: dict[str, str], output: str) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # of a loader's workers, as in a process that nobody forked
    os.environ.clear()
    os.environ.update(env)
    log = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.exit(import_module(script).main(argv))


def together(count: int, script: str, *argv: object) -> str:
    """What `count` ranks print, which must all succeed."""
    well, printed = Ranks(count, script, *argv).finish()
    assert well, printed[-4000:]
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
