"""Programs that are run, and ended together with what they started when this process is told to stop."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from excise.plumbing.errors import StageError
from excise.plumbing.process import die_with

_SECONDS_TO_END = 3.0
"""Whoever stops a run from outside, such as a runner of workflows, gives it ten or less before it kills."""
_SECONDS_TO_BE_GONE = 1.0
_WORDS_NAMED = 3


@dataclass(frozen=True)
class Done:
    """A program that ended: its exit code, and what it wrote to both of its outputs."""

    code: int
    output: str

    @property
    def error(self) -> str:
        """Why it failed, on one line."""
        return first_error(self.output) or _last_line(self.output) or f"it exited with {self.code}"


def environment() -> dict[str, str]:
    """This process's environment variables, with the programs beside its own Python first, such as `dvc`."""
    return {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}


def say(line: str) -> None:
    """Print a line at once, in its order among those that programs print."""
    print(line, flush=True)


def run(
    command: Sequence[str],
    folder: Path,
    variables: Mapping[str, str] | None = None,
    show: Callable[[str], None] | None = None,
) -> Done:
    """Run a program to its end.

    Args:
        variables: its environment; by default `environment()`.
        show: receives each line that it writes, as it does.

    Raises:
        StageError: there is no such program.
    """
    lines = []
    with _started(command, folder, variables or environment(), piped=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if show is not None:
                show(line.rstrip("\n"))
    return Done(process.returncode, "".join(lines))


def attend(command: Sequence[str], folder: Path) -> int:
    """Run a program to its end, which writes where this one does; its exit code.

    Raises:
        StageError: there is no such program.
    """
    sys.stdout.flush()
    with _started(command, folder, environment(), piped=False) as process:
        process.wait()
    return process.returncode


def output_of(*command: str) -> str:
    """What a program prints that may leave others behind, as `dvc queue start` leaves workers.

    Raises:
        StageError: it fails; with the first error that it prints.
    """
    # Not through pipes, which end with the last process that holds them.
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        done = subprocess.run(command, env=environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=errors)
        output.seek(0)
        errors.seek(0)
        if done.returncode == 0:
            return output.read()
        printed = errors.read()
    reason = first_error(printed) or printed.strip() or f"it exited with {done.returncode}"
    raise StageError(f"`{' '.join(command[:_WORDS_NAMED])}` failed: {reason}")


def first_error(text: str) -> str | None:
    """The first line that says ERROR, without that word: the stage's own, rather than DVC's that follows."""
    lines = (line.strip() for line in text.splitlines())
    return next((line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")), None)


def _last_line(text: str) -> str | None:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), None)


@contextlib.contextmanager
def _started(
    command: Sequence[str], folder: Path, variables: Mapping[str, str], piped: bool
) -> Iterator["subprocess.Popen[str]"]:
    """A program, waited for at the end of the block. When this process is interrupted meanwhile, it and everything that
    it started end before the interruption goes on, so that nothing writes into a folder that is about to be removed;
    when this process is killed, the kernel kills it.
    """
    parent = os.getpid()
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(variables),
            text=True,
            errors="replace",
            start_new_session=True,  # a group that can be ended as a whole
            preexec_fn=lambda: die_with(parent),
            stdin=subprocess.DEVNULL if piped else None,
            stdout=subprocess.PIPE if piped else None,
            stderr=subprocess.STDOUT if piped else None,
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
