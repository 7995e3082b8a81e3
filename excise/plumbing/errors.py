"""How a stage or a command ends: with an exit code, and one line where something is wrong that the user can mend."""

import errno
import signal
import sys
from collections.abc import Callable

from excise.plumbing.process import foreign_code, other_versions, stoppable
from schemas.basis.text import printable
from schemas.wording import ParamsError

FAILED = 1
WRONG_INPUT = 2
"""Wrong arguments, a bad params.yaml, or the code of another project."""
LONGEST_LINE = 400  # characters of an error


class StageError(Exception):
    """Something the user can mend. Its text is one line: what is wrong, where, and what to do. `code` is the exit code,
    where it is not that of the other errors."""

    def __init__(self, message: str = "", code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage's `main`, with the project's own code and the pinned packages, and leave the process with its exit
    code: 0; `WRONG_INPUT`; 128 and the signal's number where it was interrupted; `FAILED` for everything else that the
    user can mend. Anything unforeseen keeps its traceback: it is a defect of ours."""
    if options := [argument for argument in sys.argv[1:] if argument.startswith("-")]:
        _fail(f"unknown argument {options[0]}: a stage has no options; params.yaml says what it does", WRONG_INPUT)

    def stage() -> None:
        if difference := other_versions():
            raise StageError(difference)
        main()

    _run(stage)


def run_command(main: Callable[[], None], failed: int = FAILED) -> None:
    """Run a command as `run_stage` does a stage, with any packages; SIGTERM and SIGHUP interrupt it as well. `failed`
    is its exit code for errors that the user can mend."""
    _run(stoppable()(main), failed)


def _run(main: Callable[[], None], failed: int = FAILED) -> None:
    if foreign := foreign_code():
        _fail(foreign, WRONG_INPUT)
    try:
        main()
    except ParamsError as error:
        _fail(str(error), WRONG_INPUT)
    except StageError as error:
        _fail(str(error), failed if error.code is None else error.code)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        what = f"{error.strerror or error}{where}"
        if error.errno == errno.ENOSPC:
            remedy = "free some space on it and run again; docs/runner.md (Disk) says what can go"
            what = f"the disk is full{where}; {remedy}"
        _fail(what, failed)
    except KeyboardInterrupt as error:
        _fail("interrupted; nothing was left half-written", 128 + getattr(error, "number", signal.SIGINT))


def _fail(message: str, code: int) -> None:
    line = printable(" ".join(message.split()))
    if len(line) > LONGEST_LINE:  # a name in it may be of any length; what to do stands at the end
        line = f"{line[: LONGEST_LINE // 2]}…{line[1 - LONGEST_LINE // 2 :]}"
    print(f"ERROR: {line}", file=sys.stderr)
    sys.exit(code)
