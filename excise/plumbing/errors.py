"""How a stage fails: it says what is wrong in one line."""

import errno
import signal
import sys
from collections.abc import Callable

from schemas.text import printable
from schemas.wording import ParamsError

BAD_PARAMS = 2
FAILED = 1
LONGEST_LINE = 400
"""Characters of an error."""


class StageError(Exception):
    """Something the user can mend. Its text is one line: what is wrong, where, and what to do."""


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage's `main` and leave the process with its exit code.

    Exit codes: 0, or 2 for a bad params.yaml, or 1 for everything else that the user can mend (`StageError`, a full
    disk, a missing file). Anything unforeseen keeps its traceback: it is a defect of ours.
    """
    try:
        main()
    except ParamsError as error:
        _fail(str(error), BAD_PARAMS)
    except StageError as error:
        _fail(str(error), FAILED)
    except OSError as error:
        _fail(_describe(error), FAILED)
    except KeyboardInterrupt:
        _fail("interrupted; nothing was left half-written", 128 + signal.SIGINT)


def _fail(message: str, code: int) -> None:
    line = printable(" ".join(message.split()))
    if len(line) > LONGEST_LINE:  # a name in it may be of any length; what to do stands at the end
        line = f"{line[: LONGEST_LINE // 2]}…{line[1 - LONGEST_LINE // 2 :]}"
    print(f"ERROR: {line}", file=sys.stderr)
    sys.exit(code)


def _describe(error: OSError) -> str:
    where = f": {error.filename}" if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"the disk is full{where}; free some space on it and run again; docs/runner.md (Disk) says what can go"
    return f"{error.strerror or error}{where}"
