"""Whether DVC's cache holds what dvc.lock names. DVC itself exits with 0 where it could not put an output there."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo

from excise.plumbing.errors import StageError
from schemas.text import shorten


@dataclass(frozen=True)
class Output:
    """A cached output that dvc.lock names."""

    path: Path
    """Where it lies, or would."""
    name: str
    """As in dvc.yaml."""
    stage: str
    pushed: bool
    """Whether it goes to the remote at all."""
    lacking: tuple[Path, ...]
    """Of the cache's objects those that are not there, or not whole; of a folder whose list is missing, that alone."""
    listed: tuple[str, ...] | None
    """The files of a folder; None for a file, or where the list is missing."""
    size: int | None

    def is_here(self) -> bool:
        """Whether all of it lies where it belongs, as far as names and sizes tell."""
        if self.listed is None:
            return self.path.is_file() and self.size in (None, self.path.stat().st_size)
        files = [path for path in self.path.rglob("*") if path.is_file()]
        found = {file.relative_to(self.path).as_posix(): file.stat().st_size for file in files}
        return self.path.is_dir() and found.keys() == {*self.listed} and self.size in (None, sum(found.values()))


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Repo]:
    """A project as DVC knows it. What DVC cannot read is a `StageError`."""
    try:
        with Repo(str(folder)) as repo:
            yield repo
    except DvcException as error:
        raise StageError(f"DVC cannot read this project: {shorten(str(error), 200)}") from None


def outputs(repo: Repo) -> Iterator[Output]:
    """Every cached output of a project, or of the commit that `repo.brancher` is at."""
    for out in repo.index.outs:
        if out.use_cache and out.hash_info and out.hash_info.value:
            entry = Path(out.cache.oid_to_path(out.hash_info.value))
            lacking, listed = _lacking(entry, Path(out.cache.path), out.meta.size)
            path, stage = Path(out.fs_path), out.stage.name
            yield Output(path, out.def_path, stage, out.can_push, tuple(lacking), listed, out.meta.size)


def check_kept(folder: Path) -> None:
    """Whether the cache holds all outputs that lie in a project's folder.

    Raises:
        StageError: it lacks one, so that another commit's results would take the only copy's place.
    """
    with opened(folder) as repo:
        for output in outputs(repo):
            if output.lacking and output.path.exists():
                raise StageError(
                    f"DVC did not keep {output.name} in its cache, which lacks {output.lacking[0]}: is the disk full? "
                    f"Free some space (docs/runner.md, Disk), then run `dvc commit {output.stage}`"
                )


def _lacking(entry: Path, cache: Path, size: int | None) -> tuple[list[Path], tuple[str, ...] | None]:
    """The objects that a file's or folder's object in the cache lacks, itself perhaps, and the names of its files."""
    if not entry.name.endswith(".dir"):
        return ([] if entry.is_file() and size in (None, entry.stat().st_size) else [entry]), None
    if not entry.is_file() or f"{entry.parent.name}{entry.name}" != f"{_md5(entry)}.dir":
        return [entry], None
    files = json.loads(entry.read_bytes())
    objects = [cache / file["md5"][:2] / file["md5"][2:] for file in files]
    lacking = [path for path in objects if not path.is_file()]
    if not lacking and size not in (None, sum(path.stat().st_size for path in objects)):
        lacking = [path for path in objects if f"{path.parent.name}{path.name}" != _md5(path)]
    return lacking, tuple(file["relpath"] for file in files)


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
