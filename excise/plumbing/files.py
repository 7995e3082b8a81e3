"""Files and folders that are either whole or not there: written, digested, and read again by the next stage."""

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, TypeAdapter, ValidationError

from excise.plumbing.errors import StageError
from excise.plumbing.graph import GRAPH, read_stages
from excise.plumbing.progress import Advance, progress
from schemas.basis.document import Document, FileDigest, Sha256
from schemas.basis.plain_yaml import read_text
from schemas.basis.text import dotted, shorten
from schemas.wording import ParamsError

LARGEST = 32 * 2**20
"""Bytes of a document or of a line; the record of an edit of every expert of a large model takes half of it."""

T = TypeVar("T")
MAPPING = TypeAdapter(dict[str, Any])
"""A document of which no more is known than that it is a mapping, as metrics.json is."""

_CONFLICT = re.compile(rb"^(<<<<<<<|>>>>>>>) ", re.MULTILINE)

_CHUNK = 1 << 20
DATA = Path("data")
"""Where the user's own files are."""
SCRATCH = Path(".excise")
"""Where stages keep what a later run of them takes up."""
SETTLED_NS = 2_000_000_000
"""The coarsest clock of a file system in use, FAT's, counts two seconds."""

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
    """Yield an empty folder beside `target` that takes its place when the block ends well: at every moment `target` is
    the whole old or the whole new folder, also where a run is killed. A second run meanwhile is a `StageError`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (target.with_name(f".{target.name}.{word}") for word in ("partial", "old"))
    try:
        lock = FileLock(target.with_name(f".{target.name}.lock"), blocking=False).acquire()
    except Timeout:
        raise StageError(f"{target} is being written by another run; wait for it to end") from None
    with lock:
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
    """Whether two paths changed places in one step, as Linux does on most file systems."""
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
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256_of(path: Path, advance: Advance = lambda _: None) -> str:
    """SHA-256 of a file, read in pieces; `advance` is told the number of bytes read since."""
    return _digest(path, hashlib.sha256(), advance)


def md5_of_file(path: Path, advance: Advance = lambda _: None) -> str:
    """The same, the MD5 by which DVC knows a file."""
    return _digest(path, hashlib.md5(usedforsecurity=False), advance)


def _digest(path: Path, digest: Any, advance: Advance) -> str:
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            advance(len(chunk))
    return str(digest.hexdigest())


def sha256_line(path: Path) -> str:
    """The digest of a file as `sha256sum` writes it and `sha256sum --check` reads it, beside the file."""
    return f"{sha256_of(path)}  {path.name}\n"


def digests(folder: Path, files: Iterable[str], remembered: bool = False) -> list[FileDigest]:
    """Size and SHA-256 of files of a folder, sorted by path; with `remembered`, unchanged files are not read again."""
    paths = sorted(files)
    sizes = [(folder / path).stat().st_size for path in paths]
    memory = Memory(place) if remembered and (place := memory_file()) else None
    digest = sha256_of if memory is None else memory.sha256
    with progress("Digests", sum(sizes), "B") as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda path: digest(folder / path, advance), paths))
    if memory is not None:
        memory.keep()
    rows = zip(paths, sizes, found, strict=True)
    return [FileDigest(path=path, size=size, sha256=sha256) for path, size, sha256 in rows]


def memory_file() -> Path | None:
    """Where digests are remembered: outside of any workspace, in which a stranger's job could write. On a runner, where
    such jobs run as the same user, nowhere."""
    if os.environ.get("GITHUB_ACTIONS"):
        return None
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "excise/digests.json"


class Read(Document):
    """A file as it was when it was read."""

    size: int
    inode: int
    modified_ns: int
    changed_ns: int
    sha256: Sha256


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
        """Write what was learnt, where that is possible, without files that are gone."""
        if not self._new:
            return
        known = {name: read for name, read in {**_recalled(self._path), **self._new}.items() if os.path.isfile(name)}
        with contextlib.suppress(OSError):
            write_bytes(self._path, _KNOWN.dump_json(known, indent=1))


def _read(was: os.stat_result, sha256: str) -> Read:
    times = {"modified_ns": was.st_mtime_ns, "changed_ns": was.st_ctime_ns}
    return Read(size=was.st_size, inode=was.st_ino, sha256=sha256, **times)


def _recalled(path: Path) -> dict[str, Read]:
    try:
        return read_document(_KNOWN, path)
    except Unreadable:
        return {}


class Unreadable(StageError):
    """A file of ours that is missing, or does not hold what is written to it."""


def read_document(schema: type[T] | TypeAdapter[T], path: Path, remedy: str | None = None, largest: int = LARGEST) -> T:
    """What a JSON file of at most `largest` bytes holds. Raises `Unreadable`: it is missing, or something else; the
    `remedy` is by default to run the stage that writes it."""
    with open_plain(path, remedy) as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise unreadable(path, f"has more than {largest:,} bytes", remedy)
    return parse_document(schema, data, path, remedy)


def read_lines(schema: type[T], path: Path) -> list[T]:
    """What a file holds that has a JSON document a line. Raises as `read_document` does."""
    adapter, found = TypeAdapter(schema), []
    with open_plain(path) as file:
        # Lines of bytes end with \n alone: a prompt may hold U+2028 and the like.
        for number, line in enumerate(iter(lambda: file.readline(LARGEST + 1), b""), 1):
            if len(line) > LARGEST:
                raise unreadable(path, f"has a line of more than {LARGEST:,} bytes")
            if line != b"\n":
                found.append(parse_document(adapter, line, path, where=f": line {number}"))
    return found


def parse_document(
    schema: type[T] | TypeAdapter[T], data: bytes | str, name: str | Path, remedy: str | None = None, where: str = ""
) -> T:
    """What bytes hold; `name` is what errors call them. Raises `Unreadable`: they are not that document."""
    data = data.encode() if isinstance(data, str) else data
    adapter = schema if isinstance(schema, TypeAdapter) else TypeAdapter(schema)
    try:
        return adapter.validate_json(data)
    except ValidationError as error:
        raise unreadable(Path(name), _mistake(error, data), remedy, where) from None


def open_plain(path: Path, remedy: str | None = None) -> Any:
    """A file opened to read bytes. Raises `Unreadable`: it is missing, or a pipe or a device, which would never end."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise unreadable(path, "is not a file", remedy)
        return open(path, "rb")
    except FileNotFoundError:
        stage = _stage_of(path)
        how = remedy or (f"run `dvc repro {stage}`" if stage else "run what makes it")
        raise Unreadable(f"{path} is missing; {how}") from None
    except OSError as error:
        raise unreadable(path, f"cannot be read ({error.strerror})", remedy) from None


def _mistake(error: ValidationError, data: bytes) -> str:
    if not data.strip():
        return "is empty"
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    message = shorten(" ".join(first["msg"].split()), 100)
    if first["type"] == "json_invalid":
        if has_conflict(data):
            return "holds the conflict of a merge, of which git can keep one side"
        return f"is not whole JSON ({message.removeprefix('Invalid JSON: ')})"
    return f"is not what this version of excise writes ({dotted(first['loc'])}: {message})"


def has_conflict(data: bytes) -> bool:
    """Whether a file holds a conflict that git left in it."""
    return _CONFLICT.search(data) is not None


def _stage_of(path: Path) -> str | None:
    """The stage that writes a file, or a folder that holds it; None where dvc.yaml does not say."""
    if path.is_relative_to(SCRATCH) or path == memory_file():  # read often, to see whether it is there
        return None
    with contextlib.suppress(ParamsError):
        for name, stage in read_stages(read_text(GRAPH, GRAPH.name)).items():
            if any(map(path.is_relative_to, stage.writes)):
                return name
    return None


def unreadable(path: Path, what: str, remedy: str | None = None, where: str = "") -> Unreadable:
    """The error of a file of ours: `what` is wrong with it, as the rest of a sentence, and what makes it again."""
    stage = _stage_of(path)
    how = remedy or (f"run `dvc repro --force --single-item {stage}`" if stage else "delete it and make it again")
    return Unreadable(f"{path}{where} {what}; {how}")


def lies_in_data(path: Path) -> bool:
    """Whether a file is in the project's folder `data/` indeed: neither it nor the folder is a link to elsewhere."""
    return path.resolve().is_relative_to(Path.cwd().resolve() / DATA)
