"""SHA-256 of files, and what this machine remembers of those that it has read, so that no stage reads a
large model again.

A file is taken for the one that was read while its path, size, inode and both of its times are the same. As in git's
index, none is remembered that changed just before it was read: within the clock's grain it could change again unseen.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import Field, TypeAdapter

from excise.plumbing.artifacts import Unreadable, read_document
from excise.plumbing.files import write_bytes
from excise.plumbing.progress import Advance, progress
from schemas.document import Document, FileDigest

_CHUNK = 1 << 20
MEMORY = Path(".excise/digests.json")
SETTLED_NS = 2_000_000_000
"""The coarsest clock of a file system in use, FAT's, counts two seconds."""


def sha256_of(path: Path, advance: Advance = lambda _: None) -> str:
    """SHA-256 of a file, read in pieces; `advance` is told the number of bytes read since."""
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            sha256.update(chunk)
            advance(len(chunk))
    return sha256.hexdigest()


def sha256_line(path: Path) -> str:
    """The digest of a file as `sha256sum` writes it and `sha256sum --check` reads it, beside the file."""
    return f"{sha256_of(path)}  {path.name}\n"


def digests(folder: Path, files: Iterable[str], remembered: bool = False) -> list[FileDigest]:
    """Size and SHA-256 of these files of a folder, sorted by path, several files at a time.

    Args:
        remembered: whether what was read before, and did not change since, need not be read again.
    """
    paths = sorted(files)
    sizes = [(folder / path).stat().st_size for path in paths]
    memory = Memory(MEMORY) if remembered else None
    with progress("Digests", sum(sizes), "B") as advance, ThreadPoolExecutor(os.cpu_count()) as pool:

        def digest(path: Path) -> str:
            return sha256_of(path, advance) if memory is None else memory.sha256(path, advance)

        found = list(pool.map(digest, [folder / path for path in paths]))
    if memory is not None:
        memory.keep()
    return [
        FileDigest(path=path, size=size, sha256=sha256) for path, size, sha256 in zip(paths, sizes, found, strict=True)
    ]


class Read(Document):
    """A file as it was when it was read."""

    size: int
    inode: int
    modified_ns: int
    changed_ns: int
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


_KNOWN = TypeAdapter(dict[str, Read])


class Memory:
    """The digests of files that were read earlier; any thread may ask it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _recalled(path)
        self._new: dict[str, Read] = {}

    def sha256(self, path: Path, advance: Advance = lambda _: None) -> str:
        """Of a file, as `sha256_of` gives it, which is not asked where the file is remembered."""
        real = path.resolve()
        began, before = time.time_ns(), real.stat()
        known = self._known.get(str(real))
        if known is not None and known == _read(before, known.sha256):
            advance(known.size)
            return known.sha256
        sha256 = sha256_of(real, advance)
        if max(before.st_mtime_ns, before.st_ctime_ns) + SETTLED_NS < began:
            # As it was before: if it changed while it was read, it is not that file any more.
            self._new[str(real)] = _read(before, sha256)
        return sha256

    def keep(self) -> None:
        """Write what was learnt, without files that are gone; where that cannot be done, it is learnt again."""
        if not self._new:
            return
        known = {name: read for name, read in {**_recalled(self._path), **self._new}.items() if os.path.isfile(name)}
        with contextlib.suppress(OSError):
            write_bytes(self._path, _KNOWN.dump_json(known, indent=1))


def _read(status: os.stat_result, sha256: str) -> Read:
    return Read(
        size=status.st_size,
        inode=status.st_ino,
        modified_ns=status.st_mtime_ns,
        changed_ns=status.st_ctime_ns,
        sha256=sha256,
    )


def _recalled(path: Path) -> dict[str, Read]:
    """What an earlier run wrote; nothing where it cannot be read."""
    try:
        return read_document(_KNOWN, path)
    except Unreadable:
        return {}
