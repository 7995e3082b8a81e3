"""The files of a commit or a working tree, which may be a stranger's, and whether the stages ran for them. Files
that are not regular, or too large, are refused."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from excise.gitops.git import answer, contents, file_of
from excise.gitops.lock import LOCK, Entry, File, LockError, md5_of, md5_of_folder, read_lock
from excise.plumbing.errors import StageError
from excise.plumbing.files import has_conflict, md5_of_file
from excise.plumbing.graph import GRAPH, Stage, read_stages
from schemas.basis.text import shorten
from schemas.params.document import parse, settings_of_stages
from schemas.wording import ParamsError

PARAMS = "params.yaml"
RESOLVED = "artifacts/params/"

LARGEST = 16 * 2**20  # bytes of a file; thousands of metrics take a tenth of it
MOST_READ = 64 * 2**20
"""Bytes of an output that are read to compare its MD5; of a larger one, such as a model, its size is compared."""

_FILE = re.compile(r"(1[0-9]{5}) blob ([0-9a-f]+) +([0-9]+)\t(.+)", re.DOTALL)


class _Blob(NamedTuple):
    mode: str
    digits: str
    size: int


@dataclass(frozen=True)
class Commit:
    """A commit, read through git's objects and never through a checkout."""

    project: Path
    commit: str

    def text(self, path: str) -> str | None:
        """A project's file; None where there is none. Raises `StageError` for what is refused."""
        if (entry := self._entries.get(path)) is None:
            return None
        _refuse_odd(path, self.commit, entry.mode.startswith("100"), entry.size)
        return file_of(self.project, self.commit, path)

    def names(self, folder: str) -> list[str]:
        """What lies in a project's folder, sorted; nothing where there is no such folder."""
        return sorted({name.partition("/")[0] for name in self._below(folder) if name})

    def sizes(self, path: str) -> dict[str, int] | None:
        """Of all files in a project's folder, by their paths in it; of a file, by the empty path; None for nothing."""
        return {name: entry.size for name, entry in self._below(path).items()} or None

    def md5s(self, path: str, names: Sequence[str]) -> list[str]:
        """Of files that `sizes` gave."""
        entries = self._below(path)
        return [md5_of(data) for data in contents(self.project, [entries[name].digits for name in names])]

    @property
    def where(self) -> str:
        """As it follows a name in a message."""
        return f" at {self.commit[:12]}"

    def _below(self, path: str) -> dict[str, _Blob]:
        if path in self._entries:
            return {"": self._entries[path]}
        return {name[len(path) + 1 :]: entry for name, entry in self._entries.items() if name.startswith(f"{path}/")}

    @cached_property
    def _entries(self) -> dict[str, _Blob]:
        listed = answer(self.project, "ls-tree", "-r", "-l", "-z", self.commit) or ""
        found = (_FILE.fullmatch(line) for line in listed.split("\0"))
        return {entry[4]: _Blob(entry[1], entry[2], int(entry[3])) for entry in found if entry}


@dataclass(frozen=True)
class WorkingTree:
    """A folder, whether what lies in it is committed or not; it is asked as a commit is."""

    project: Path

    def text(self, path: str) -> str | None:
        place = self._inside(path)
        if not place.exists():
            return None
        _refuse_odd(path, str(self.project), place.is_file(), place.stat().st_size)
        return place.read_bytes().decode(errors="replace")

    def names(self, folder: str) -> list[str]:
        place = self._inside(folder)
        return sorted(entry.name for entry in place.iterdir()) if place.is_dir() else []

    def sizes(self, path: str) -> dict[str, int] | None:
        place = self.project / path
        if place.is_dir():
            files = (Path(folder) / name for folder, _, names in os.walk(place) for name in names)
            return {file.relative_to(place).as_posix(): file.stat().st_size for file in files}
        return {"": place.stat().st_size} if place.is_file() else None

    def md5s(self, path: str, names: Sequence[str]) -> list[str]:
        return [md5_of_file(self.project / path / name) for name in names]

    @property
    def where(self) -> str:
        return "" if self.project == Path() else f" ({self.project})"

    def _inside(self, path: str) -> Path:
        place = self.project
        for part in path.split("/"):
            place = place / part
            if place.is_symlink():
                raise _refusal(path, str(self.project), "is behind a link")
        return place


Side = Commit | WorkingTree
"""One side of a comparison."""


def _refuse_odd(path: str, where: str, regular: bool, size: int) -> None:
    if not regular:
        raise _refusal(path, where, "is not a regular file")
    if size > LARGEST:
        raise _refusal(path, where, "is too large")


def _refusal(path: str, where: str, what: str) -> StageError:
    return StageError(f"{path} in {where} {what}; it must be a file of less than {LARGEST // 2**20} MiB")


def check_ran(side: Side) -> None:
    """Raises `StageError` where a stage would run again, or its outputs were changed. Cached ones may be missing."""
    if (lock := side.text(LOCK)) is None:
        raise _not_run(side, f"there is no {LOCK}")
    _refuse_conflict(side, LOCK, lock)
    defined = _defined(side)
    try:
        stages = {name: entry for name, entry in read_lock(lock).stages.items() if name in defined}
        wrote = {file.path: file for entry in stages.values() for file in entry.outs}
        for name, stage in defined.items():
            if name not in stages:
                raise _not_run(side, f"{name} is in {GRAPH} and not in {LOCK}")
            _check_stage(side, name, stages[name], stage, wrote)
    except LockError as error:
        raise _not_run(side, f"{LOCK} is not what DVC writes ({shorten(str(error), 80)})") from None


def _check_stage(side: Side, name: str, entry: Entry, stage: Stage, wrote: Mapping[str, File]) -> None:
    reads, writes = {file.path for file in entry.deps}, {file.path for file in entry.outs}
    if (entry.cmd, reads, writes) != (stage.command, {*stage.reads}, {*stage.writes}):
        raise _not_run(side, f"{name} is another stage in {GRAPH} than in {LOCK}")
    for file in entry.deps:
        if file.path in wrote:
            if wrote[file.path].md5 != file.md5:
                raise _not_run(side, f"{file.path} was made again after {name} ran")
        elif not _is_as_recorded(side, file) and not (file.path == PARAMS and _resolves_alike(side, entry)):
            raise _not_run(side, f"{file.path} changed since {name} ran")
    for file in entry.outs:
        as_recorded, committed = _is_as_recorded(side, file), file.path in stage.committed
        if as_recorded is None and committed:
            raise _not_run(side, f"{file.path} is missing")
        if as_recorded is False:
            if committed and (text := side.text(file.path)) is not None:
                _refuse_conflict(side, file.path, text)
            raise _not_run(side, f"{file.path} is not what {name} wrote")


def _is_as_recorded(side: Side, file: File) -> bool | None:
    if file.md5 is None:
        raise LockError(f"{file.path} has no md5")
    sizes = side.sizes(file.path)
    if sizes is None:
        return None
    if not file.md5.endswith(".dir"):
        if list(sizes) != [""] or file.size not in (None, sizes[""]):
            return False
        return sizes[""] > MOST_READ or side.md5s(file.path, [""]) == [file.md5]
    ignored = [line for line in (side.text(".dvcignore") or "").split() if not line.startswith("#")]
    names = [name for name in sizes if name and not _is_ignored(name, ignored)]
    total = sum(sizes[name] for name in names)
    if "" in sizes or file.size not in (None, total) or file.nfiles not in (None, len(names)):
        return False
    return total > MOST_READ or md5_of_folder(dict(zip(names, side.md5s(file.path, names), strict=True))) == file.md5


def _is_ignored(name: str, patterns: list[str]) -> bool:
    return any(fnmatch(part, pattern) for part in name.split("/") for pattern in patterns)


def _resolves_alike(side: Side, entry: Entry) -> bool:
    """Whether params.yaml means what it meant, as where only a comment changed."""
    resolved = settings_of_stages(parse(side.text(PARAMS) or ""))
    md5s = {f"{RESOLVED}{name}.json": md5_of(text.encode()) for name, text in resolved.items()}
    return md5s == {file.path: file.md5 for file in entry.outs}


def _defined(side: Side) -> dict[str, Stage]:
    if (text := side.text(GRAPH.name)) is None:
        raise _not_run(side, f"there is no {GRAPH}")
    try:
        return read_stages(text)
    except ParamsError as error:
        raise _not_run(side, shorten(str(error), 160)) from None


def _refuse_conflict(side: Side, path: str, text: str) -> None:
    if has_conflict(text.encode()):
        remedy = "correct params.yaml, then `make merge` and `make repro`"
        raise StageError(f"{path}{side.where} holds conflict markers of a merge: {remedy} and commit")


def _not_run(side: Side, what: str) -> StageError:
    return StageError(f"the stages have not run for what lies here{side.where}: {what}; run `make repro`")
