"""What other people's files may cost: code that reads them, within a limit of time and of memory."""

import contextlib
import resource
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import psutil

from stages.base.stage import StageError

_LOOK = "look for a number in it that is too large, or a loop that does not end"


class _TimeIsUp(BaseException):
    """Not an `Exception`, so that no library's own handler takes it for an error of its own."""


@contextlib.contextmanager
def bounded(seconds: int, memory: int, what: str) -> Iterator[None]:
    """Within the block, the main thread may take so much time, and this process so much more memory than it has.

    Args:
        memory: bytes.
        what: the subject of the error's sentence, such as `/models/x: its config.json`.

    Raises:
        StageError: one of the two is used up.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = psutil.Process().memory_info().data + memory
    lowered = soft == resource.RLIM_INFINITY or allowed < soft
    timed = threading.current_thread() is threading.main_thread()

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _TimeIsUp

    before = signal.signal(signal.SIGALRM, stop) if timed else None
    try:
        if lowered:
            resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))
        if timed:
            signal.alarm(seconds)
        yield
    except _TimeIsUp:
        raise StageError(f"{what} takes more than {seconds} s to read; {_LOOK}") from None
    except MemoryError:
        raise StageError(f"{what} takes more than {memory >> 20:,} MiB to read; {_LOOK}") from None
    finally:
        if timed:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        if lowered:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
