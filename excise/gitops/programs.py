"""Programs that are run, and ended together with what they started when this process is told to stop."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from excise.plumbing.errors import StageError
from excise.plumbing.process import die_with

_SECONDS_TO_END = 3.0  # a runner of workflows gives ten or less before it kills
_SECONDS_TO_BE_GONE = 1.0


@dataclass(frozen=True)
class Done:
    """A program that ended: its exit code, and what it wrote to both of its outputs."""

    code: int
    output: str

    @property
    def error(self) -> str:
        """Why it failed, on one line."""
        last = (self.output.strip() or f"it exited with {self.code}").splitlines()[-1].strip()
        return first_error(self.output) or last


def environment() -> dict[str, str]:
    """This process's environment variables, with the programs beside its own Python first, such as `dvc`."""
    return {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}


def run(command: Sequence[str], folder: Path, variables: Mapping[str, str] | None = None, shown: bool = False) -> Done:
    """Run a program to its end, with these variables, by default `environment()`, and keep what it writes; if `shown`,
    each line is also printed as it comes. Raises `StageError` where there is no such program."""
    if shown:
        lines = []
        with _started(command, folder, variables, subprocess.PIPE) as process:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                print(line.rstrip("\n"), flush=True)
        return Done(process.returncode, "".join(lines))
    # Not a pipe, which ends with the last process that holds it: `dvc queue start` leaves workers behind.
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        with _started(command, folder, variables, output) as process:
            pass
        output.seek(0)
        return Done(process.returncode, output.read())


def run_or_fail(*command: str) -> None:
    """Run a program in the current folder. Raises `StageError`, with the first error that it prints, where it fails."""
    done = run(command, Path())
    if done.code != 0:
        raise StageError(f"`{' '.join(command[:3])}` failed: {done.error}")


def attend(command: Sequence[str], folder: Path) -> int:
    """Run a program to its end, which writes where this one does; its exit code. Raises as `run` does."""
    sys.stdout.flush()
    with _started(command, folder, None, None) as process:
        pass
    return process.returncode


def first_error(text: str) -> str | None:
    """The first line that says ERROR, without that word: the stage's own, rather than DVC's that follows."""
    lines = (line.strip() for line in text.splitlines())
    return next((line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")), None)


@contextlib.contextmanager
def _started(
    command: Sequence[str], folder: Path, variables: Mapping[str, str] | None, output: IO[str] | int | None
) -> Iterator["subprocess.Popen[str]"]:
    """A program, waited for at the end of the block. When this process is interrupted, it and all that it started end
    first, so that nothing writes into a folder that is about to be removed; when this process is killed, it is too."""
    parent = os.getpid()
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment() if variables is None else variables),
            text=True,
            errors="replace",
            start_new_session=True,  # a group that can be ended as a whole
            preexec_fn=lambda: die_with(parent),
            stdin=None if output is None else subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
        )
    except FileNotFoundError as error:
        raise StageError(f"{error.filename} is not there; install it, or put it into PATH") from None
    with process:
        try:
            yield process
            process.wait()
        except BaseException:
            _end(process)
            raise


def _end(process: "subprocess.Popen[str]") -> None:
    """Ask the whole group to stop, as Ctrl-C would; then make it, and wait until none of it is left to write."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_SECONDS_TO_END)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    until = time.monotonic() + _SECONDS_TO_BE_GONE
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < until:
            os.killpg(process.pid, 0)
            time.sleep(0.01)
