"""Files and folders that are either whole or not there."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from stages.base.stage import StageError


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


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target` that replaces it when the block ends well.

    A run that was killed leaves only `.NAME.partial`, which the next run sweeps. A second run at the same time is
    refused: the lock is the kernel's, so it ends with the process that holds it.

    Raises:
        StageError: another process is writing the same folder.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    with open(target.with_name(f".{target.name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageError(f"{target} is being written by another run; wait for it to end") from None
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir()
        try:
            yield partial
            if target.exists():
                shutil.rmtree(target)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
