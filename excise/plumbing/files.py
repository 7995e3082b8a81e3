"""Files and folders that are either whole or not there."""

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel

from excise.plumbing.errors import StageError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds the old or the new bytes, never a part; an identical file is kept as it is."""
    if path.is_file() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, document: BaseModel) -> None:
    """Write a schema's JSON: two spaces, declared order, a final newline; the same value gives the same bytes."""
    write_text(path, document.model_dump_json(indent=2) + "\n")


def write_lines(path: Path, documents: Iterable[BaseModel]) -> None:
    """Write one JSON document a line, as `read_lines` reads them."""
    write_text(path, "".join(document.model_dump_json() + "\n" for document in documents))


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target` that takes its place when the block ends well.

    At every moment `target` is the whole old or the whole new folder. What a killed run left beside it, the next run
    sweeps. A second run at the same time is refused: the lock is the kernel's, so it ends with the process that holds
    it.

    Raises:
        StageError: another process is writing the same folder.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (target.with_name(f".{target.name}.{word}") for word in ("partial", "old"))
    with open(target.with_name(f".{target.name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageError(f"{target} is being written by another run; wait for it to end") from None
        if os.path.lexists(old):  # a run was killed between two renames, or behind them
            _remove(old) if os.path.lexists(target) else old.rename(target)
        _remove(partial)
        partial.mkdir()
        try:
            yield partial
            if not os.path.lexists(target):
                partial.rename(target)
            elif not _exchanged(partial, target):
                target.rename(old)
                partial.rename(target)
                _remove(old)
        finally:
            with contextlib.suppress(OSError):  # the next run sweeps it
                _remove(partial)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether two paths changed places, in one step: Linux does that on most file systems."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _remove(path: Path) -> None:
    """A folder, link or file, which may not be there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
