"""How a stage starts and how it fails: it dies with its parent, and says what is wrong in one line."""

import ctypes
import errno
import os
import signal
import sys
from collections.abc import Callable

from schemas.params import ParamsError
from schemas.wording import printable
from stages import STARTED_BY

BAD_PARAMS = 2
FAILED = 1
_PR_SET_PDEATHSIG = 1


class StageError(Exception):
    """Something the user can mend. Its text is one line: what is wrong, where, and what to do."""


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage's `main` and leave the process with its exit code.

    Exit codes: 0, or 2 for a bad params.yaml, or 1 for everything else that the user can mend (`StageError`, a full
    disk, a missing file). Anything unforeseen keeps its traceback: it is a defect of ours.
    """
    _die_with_parent()
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
    print("ERROR: " + printable(" ".join(message.split())), file=sys.stderr)
    sys.exit(code)


def _describe(error: OSError) -> str:
    where = f": {error.filename}" if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"the disk is full{where}; free some space (`dvc gc --workspace` drops unused models) and run again"
    return f"{error.strerror or error}{where}"


def _die_with_parent() -> None:
    """Ask the kernel to kill this process when DVC dies, which otherwise leaves its stage running."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != STARTED_BY:  # it died before the request was in place
        os.kill(os.getpid(), signal.SIGKILL)
