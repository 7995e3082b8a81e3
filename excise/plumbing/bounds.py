"""What other people's files may cost: code that reads them, within a limit of time and of memory."""

import contextlib
import re
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

_OWN_STATUS = Path("/proc/self/status")


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
    timed = threading.current_thread() is threading.main_thread()  # signals reach no other
    handler = signal.signal(signal.SIGVTALRM, _stop) if timed else None
    try:
        with at_most(memory):
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


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise _TimeIsUp


@contextlib.contextmanager
def at_most(more: int) -> Iterator[None]:
    """A block in which this process gets no more memory than so many bytes beyond what it has: what asks for more meets
    a `MemoryError`. Where the system keeps no such limit (all but Linux) there is none."""
    if sys.platform != "linux":
        yield
        return
    found = re.search(r"^VmData:\s+(\d+) kB$", _OWN_STATUS.read_text(), re.MULTILINE)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [limit for limit in before if limit != resource.RLIM_INFINITY]
    limit = min([1024 * int(found[1]) + more, *limits]) if found else before[0]
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
