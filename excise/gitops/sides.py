"""Where one side's files are read: from a commit, or from a working tree, which may be a stranger's.

Nothing that is read is followed or run: what is not a regular file, or not of a sane size, is refused.
"""

import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from excise.gitops.git import answer, contents, file_of
from excise.gitops.lock import md5_of
from excise.plumbing.errors import StageError

LARGEST = 16 * 2**20
"""Bytes of one file; thousands of metrics take a tenth of it."""

_FILE = re.compile(r"(1[0-9]{5}) blob ([0-9a-f]+) +([0-9]+)\t(.+)", re.DOTALL)


class Side(Protocol):
    """One side of a comparison."""

    def text(self, path: str) -> str | None:
        """A project's file; None where there is none. Raises `StageError` for what is refused."""

    def names(self, folder: str) -> list[str]:
        """What lies in a project's folder, sorted; nothing where there is no such folder."""

    def sizes(self, path: str) -> dict[str, int] | None:
        """Of all files in a project's folder, however deep, by their paths in it; of a file, by the empty one. None
        where there is nothing."""

    def md5s(self, path: str, names: Sequence[str]) -> list[str]:
        """Of files that `sizes` gave."""

    @property
    def where(self) -> str:
        """As it follows a name in a message: nothing for the folder that one is in."""


@dataclass(frozen=True)
class Commit(Side):
    """A commit, read through git's objects and never through a checkout."""

    project: Path
    commit: str

    def text(self, path: str) -> str | None:
        if (entry := self._entries.get(path)) is None:
            return None
        if not entry.mode.startswith("100"):
            raise _refusal(path, self.commit, "is not a regular file")
        if entry.size > LARGEST:
            raise _refusal(path, self.commit, "is too large")
        return file_of(self.project, self.commit, path)

    def names(self, folder: str) -> list[str]:
        return sorted({name.partition("/")[0] for name in self._below(folder) if name})

    def sizes(self, path: str) -> dict[str, int] | None:
        return {name: entry.size for name, entry in self._below(path).items()} or None

    def md5s(self, path: str, names: Sequence[str]) -> list[str]:
        entries = self._below(path)
        return [md5_of(io.BytesIO(data)) for data in contents(self.project, [entries[name].blob for name in names])]

    @property
    def where(self) -> str:
        return f" at {self.commit[:12]}"

    def _below(self, path: str) -> dict[str, "_Entry"]:
        """Of a folder, every file by its path in it; a file by the empty one."""
        found = {name[len(path) + 1 :]: entry for name, entry in self._entries.items() if name.startswith(f"{path}/")}
        return {"": self._entries[path]} if path in self._entries else found

    @cached_property
    def _entries(self) -> dict[str, "_Entry"]:
        listed = answer(self.project, "ls-tree", "-r", "-l", "-z", self.commit) or ""
        found = (_FILE.fullmatch(line) for line in listed.split("\0"))
        return {entry[4]: _Entry(entry[1], entry[2], int(entry[3])) for entry in found if entry}


@dataclass(frozen=True)
class _Entry:
    """A file of a commit."""

    mode: str
    blob: str
    size: int


@dataclass(frozen=True)
class WorkingTree(Side):
    """A folder, whether what lies in it is committed or not."""

    project: Path

    def text(self, path: str) -> str | None:
        place = self._inside(path)
        if not place.exists():
            return None
        if not place.is_file():
            raise _refusal(path, str(self.project), "is not a regular file")
        if place.stat().st_size > LARGEST:
            raise _refusal(path, str(self.project), "is too large")
        return place.read_bytes().decode(errors="replace")

    def sizes(self, path: str) -> dict[str, int] | None:
        place = self.project / path
        if place.is_dir():
            files = (Path(folder) / name for folder, _, names in os.walk(place) for name in names)
            return {file.relative_to(place).as_posix(): file.stat().st_size for file in files}
        return {"": place.stat().st_size} if place.is_file() else None

    def md5s(self, path: str, names: Sequence[str]) -> list[str]:
        found = []
        for name in names:
            with open(self.project / path / name, "rb") as file:
                found.append(md5_of(file))
        return found

    @property
    def where(self) -> str:
        return "" if self.project == Path() else f" ({self.project})"

    def names(self, folder: str) -> list[str]:
        place = self._inside(folder)
        return sorted(entry.name for entry in place.iterdir()) if place.is_dir() else []

    def _inside(self, path: str) -> Path:
        """Where that lies, which must be reached without a link."""
        place = self.project
        for part in path.split("/"):
            place = place / part
            if place.is_symlink():
                raise _refusal(path, str(self.project), "is behind a link")
        return place


def _refusal(path: str, where: str, what: str) -> StageError:
    return StageError(f"{path} in {where} {what}; it must be a file of less than {LARGEST // 2**20} MiB")
