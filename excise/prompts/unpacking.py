"""A limit on the memory that a source of prompts may take: a few megabytes of Parquet can hold gigabytes."""

import contextlib
from collections.abc import Iterator

from excise.plumbing.bounds import at_most
from excise.plumbing.errors import StageError

MOST_MEMORY = 384 * 2**20
"""Bytes for the rows of a source, and as many again for what is made of them: some hundred thousand prompts."""


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
