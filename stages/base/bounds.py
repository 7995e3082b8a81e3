"""What other people's files may cost: code that reads them, within a limit of time and of memory."""

import contextlib
import resource
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import psutil


class UsedUp(Exception):
    """More time or memory was wanted than is given. Its text is the rest of a sentence."""


class _TimeIsUp(BaseException):
    """Not an `Exception`, so that no library's own handler takes it for an error of its own."""


@contextlib.contextmanager
def bounded(seconds: int, memory: int) -> Iterator[None]:
    """Within the block, the main thread may take so much processor time, and this process so much more memory than it
    has.

    Args:
        memory: bytes.

    Raises:
        UsedUp: one of the two is.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = psutil.Process().memory_info().data + memory
    timed = threading.current_thread() is threading.main_thread()  # signals reach no other
    handler = signal.signal(signal.SIGVTALRM, _stop) if timed else None
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (most if soft == resource.RLIM_INFINITY else min(most, soft), hard))
        if timed:
            signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        yield
    except _TimeIsUp:
        raise UsedUp(f"takes more than {seconds} seconds") from None
    except MemoryError:
        raise UsedUp(f"takes more than {memory >> 20:,} MiB of memory") from None
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, handler)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise _TimeIsUp
