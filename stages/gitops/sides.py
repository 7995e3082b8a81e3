"""Where one side's files are read: from a commit, or from a working tree, which may be a stranger's.

Nothing that is read is followed or run: what is no regular file, or not of a sane size, is refused.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stages.base.git import answer, file_of
from stages.base.stage import StageError

LARGEST = 16 * 2**20
"""Bytes of one file; thousands of metrics take a tenth of it."""

_LISTED = re.compile(r"([0-9]{6}) [a-z]+ [0-9a-f]+ +([0-9]+|-)\t")


class Side(Protocol):
    """One side of a comparison."""

    def text(self, path: str) -> str | None:
        """A project's file; None where there is none. Raises `StageError` for what is refused."""

    def names(self, folder: str) -> list[str]:
        """What lies in a project's folder, sorted; nothing where there is no such folder."""


@dataclass(frozen=True)
class Commit:
    """A commit, read through git's objects and never through a checkout."""

    project: Path
    commit: str

    def text(self, path: str) -> str | None:
        """See `Side`."""
        found = _LISTED.match(answer(self.project, "ls-tree", "-l", self.commit, "--", path) or "")
        if found is None:
            return None
        if not found[1].startswith("100"):
            raise _refusal(path, self.commit, "is no regular file")
        if int(found[2]) > LARGEST:
            raise _refusal(path, self.commit, "is too large")
        return file_of(self.project, self.commit, path)

    def names(self, folder: str) -> list[str]:
        """See `Side`."""
        listed = answer(self.project, "ls-tree", "--name-only", "-z", self.commit, "--", f"{folder}/") or ""
        return sorted(entry.rpartition("/")[2] for entry in listed.split("\0") if entry)


@dataclass(frozen=True)
class WorkingTree:
    """A folder, whether what lies in it is committed or not."""

    project: Path

    def text(self, path: str) -> str | None:
        """See `Side`."""
        place = self._inside(path)
        if not place.exists():
            return None
        if not place.is_file():
            raise _refusal(path, str(self.project), "is no regular file")
        if place.stat().st_size > LARGEST:
            raise _refusal(path, str(self.project), "is too large")
        return place.read_bytes().decode(errors="replace")

    def names(self, folder: str) -> list[str]:
        """See `Side`."""
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
