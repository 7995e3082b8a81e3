"""Commands of git's and DVC's: their output, and in one line why they failed."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable

from stages.base.stage import StageError

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
    """Run a command whose output is shown as it comes. It is interrupted when this process is.

    Raises:
        StageError: it fails; with the first error that it printed.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    error = None
    sys.stdout.flush()
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                print(line, end="", file=sys.stderr, flush=True)
                error = error or first_error(line)
        except BaseException:
            process.send_signal(signal.SIGINT)
            raise
    if process.returncode != 0:
        raise StageError(error or f"`{' '.join(command[:_LONGEST_NAME])}` exited with {process.returncode}")


def first_error(text: str) -> str | None:
    """The first line that says ERROR, without that word."""
    return next((line.removeprefix("ERROR: ") for line in text.splitlines() if line.startswith("ERROR: ")), None)


def overriding(arguments: Iterable[str]) -> list[str]:
    """The options of `dvc exp run` for overrides of params.yaml."""
    return [part for argument in arguments for part in ("--set-param", argument)]
