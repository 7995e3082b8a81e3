"""Commands of git's and DVC's: their output, and in one line why they failed."""

import os
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from excise.gitops.processes import run
from excise.plumbing.errors import StageError

_LONGEST_NAME = 3


def output_of(*command: str) -> str:
    """What a command prints.

    Raises:
        StageError: it fails; with the first error that it prints.
    """
    # Not through pipes, which end with the last process that holds them: `dvc queue start` leaves workers behind.
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors).returncode
        output.seek(0)
        errors.seek(0)
        if code == 0:
            return output.read()
        printed = errors.read()
    reason = first_error(printed) or printed.strip() or f"it exited with {code}"
    raise StageError(f"`{' '.join(command[:_LONGEST_NAME])}` failed: {reason}")


def show(*command: str) -> None:
    """Run a command whose output is shown as it comes. What it started ends when this process is interrupted.

    Raises:
        StageError: it fails; with the first error that it printed.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    done = run(command, Path(), environment, lambda line: print(line, flush=True))
    if done.code != 0:
        raise StageError(done.error)


def first_error(text: str) -> str | None:
    """The first line that says ERROR, without that word."""
    return next((line.removeprefix("ERROR: ") for line in text.splitlines() if line.startswith("ERROR: ")), None)


def overriding(arguments: Iterable[str]) -> list[str]:
    """The options of `dvc exp run` for overrides of params.yaml."""
    return [part for argument in arguments for part in ("--set-param", argument)]
