"""A commit's working tree, in which DVC has this clone's cache, remotes and credentials."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dvc.config import Config

from stages.base.git import worktree
from stages.base.stage import StageError
from stages.gitops.processes import Done, run

_DVC = Path(".dvc")


@dataclass(frozen=True)
class Tree:
    """A working tree, for as long as it is there."""

    folder: Path
    commit: str
    cache: Path
    """DVC's, which all working trees of the clone share."""
    has_remote: bool

    def dvc(self, *arguments: str) -> Done:
        """A command of the DVC that is installed here."""
        return run(["dvc", *arguments], self.folder, here())

    def check_is_recorded(self, target: str) -> None:
        """Whether its dvc.lock is of its own code and parameters, as far as a stage and those before it go.

        Raises:
            StageError: something is otherwise than when the stages ran.
        """
        done = self.dvc("status", "--json", "--with-deps", target)
        if done.code != 0:
            raise StageError(f"DVC cannot read the stages of {self.commit[:12]}: {done.error}")
        if changed := changed_since(done.output):
            raise StageError(
                f"at {self.commit[:12]} dvc.lock is not of its own {changed}: `dvc repro` had not run yet; name the "
                "commit that recorded its results"
            )


@contextlib.contextmanager
def commit_tree(clone: Path, commit: str, place: Path) -> Iterator[Tree]:
    """The working tree of a commit in a temporary place, gone when the block ends."""
    with worktree(clone, commit, inside=place) as folder:
        cache, has_remote = _share(clone, folder, place)
        yield Tree(folder, commit, cache, has_remote)


def changed_since(status: str) -> str | None:
    """The first thing that `dvc status --json` says is another than in dvc.lock: a file, or a stage's command. That
    there is none of it yet, as in every new working tree, is no change."""
    for stage, changes in json.loads(status[status.index("{") :]).items():
        for change in changes:
            if change == "changed command":
                return f"command of {stage}"
            for files in change.values() if isinstance(change, dict) else ():
                for path, what in files.items():
                    if what == "modified":
                        return str(path)
    return None


def here() -> dict[str, str]:
    """This process's environment, its own Python's programs first."""
    return {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}


def _share(clone: Path, folder: Path, place: Path) -> tuple[Path, bool]:
    """Lay DVC's settings of the clone, with absolute paths, over those of the commit, whose remotes may be gone. They
    may hold a secret: the place is the user's alone, and removed.

    Returns:
        The folder of the cache, and whether there is a remote to ask.
    """
    of_clone = Config(str((clone / _DVC).resolve()), validate=False)
    cache = Path(of_clone.get("cache", {}).get("dir") or (clone / _DVC / "cache").resolve())
    with Config(str(folder / _DVC), validate=False).edit("local", validate=False) as local:
        for level in ("repo", "local"):
            for section, settings in of_clone.read(level).items():
                _merge(local.setdefault(section, {}), settings)
        local["cache"]["dir"] = str(cache)
        # Otherwise something of each of these trees would stay in the cache that all projects of the machine share.
        local["core"]["site_cache_dir"] = str(place / "site")
    has_remote = bool(Config(str(folder / _DVC), validate=False).get("core", {}).get("remote"))
    return cache, has_remote


def _merge(into: dict[str, object], settings: Mapping[str, object]) -> None:
    for name, value in settings.items():
        there = into.setdefault(name, value)
        if isinstance(there, dict) and isinstance(value, Mapping):
            _merge(there, value)
        else:
            into[name] = value
