"""Programs that are run, and ended together with what they started when this process is told to stop."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from excise.plumbing.errors import StageError
from stages import die_with

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SECONDS_TO_END = 3.0
"""Whoever stops a run from outside, such as a runner of workflows, gives it ten or less before it kills."""
_SECONDS_TO_BE_GONE = 1.0


@dataclass(frozen=True)
class Done:
    """A program that ended: its exit code, and what it wrote to both of its outputs."""

    code: int
    output: str

    @property
    def error(self) -> str:
        """Why it failed, on one line: its first error, the stage's own rather than DVC's that follows; or the last
        thing that it said."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        errors = (line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: "))
        return next(errors, lines[-1] if lines else f"it exited with {self.code}")


def run(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], show: Callable[[str], None] | None = None
) -> Done:
    """Run a program to its end; `show` is told each line that it writes, as it does.

    Raises:
        StageError: there is no such program.
    """
    lines = []
    with _started(command, folder, environment, piped=True) as process:
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
    with _started(command, folder, os.environ, piped=False) as process:
        process.wait()
    return process.returncode


@contextlib.contextmanager
def _started(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], piped: bool
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
            env=dict(environment),
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


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP interrupt as Ctrl-C does. What comes after the first of them is ignored:
    it would only stop the tidying up."""
    before = {number: signal.getsignal(number) for number in _STOPS}
    heeded = [number for number, handler in before.items() if handler != signal.SIG_IGN]  # as under nohup

    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in heeded:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in heeded:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, before[number])


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
