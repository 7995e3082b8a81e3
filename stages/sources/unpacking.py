"""A limit on the memory that a source of prompts may take: a few megabytes of Parquet can hold gigabytes."""

import contextlib
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from stages.base.stage import StageError

MOST_MEMORY = 384 * 2**20
"""Bytes for the rows of a source, and as many again for what is made of them: some hundred thousand prompts."""

_OWN_STATUS = Path("/proc/self/status")


@contextlib.contextmanager
def unpacked(name: str) -> Iterator[None]:
    """A block that reads a source, or makes prompts of what was read.

    Raises:
        StageError: that takes more than `MOST_MEMORY`.
    """
    try:
        with at_most(MOST_MEMORY):
            yield
    except MemoryError:
        what = f"takes more than {MOST_MEMORY // 2**20} MiB of memory once it is unpacked"
        raise StageError(f"{name} {what}; keep fewer rows or columns in it") from None


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
