"""A commit's working tree, in which DVC has this clone's cache, remotes and credentials."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dvc.config import Config

from excise.gitops.git import worktree
from excise.gitops.processes import Done, run
from excise.plumbing.errors import StageError

_DVC = Path(".dvc")


@dataclass(frozen=True)
class Tree:
    """A working tree, for as long as it is there."""

    folder: Path
    commit: str
    cache: Path
    """DVC's, which all working trees of the clone share."""
    remote: str | None
    """The one to ask. DVC itself is not told of it at first: it would fail on one that it cannot use, even where it
    needs nothing from there."""

    def check_out(self, path: str) -> bool:
        """Put what dvc.lock records into its place, out of the cache; whether that had the whole of it."""
        return self.dvc("checkout", path).code == 0

    def fetch(self, path: str) -> str | None:
        """Bring into the cache what the remote has of it; why that cannot be asked, or None."""
        assert self.remote is not None
        done = self.dvc("fetch", "--remote", self.remote, path)
        return None if done.code == 0 else done.error

    def use_remote(self) -> None:
        """Let DVC pull from the remote by itself."""
        assert self.remote is not None
        with Config(str(self.folder / _DVC), validate=False).edit("local", validate=False) as local:
            local["core"]["remote"] = self.remote

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
        cache, remote = _share(clone, folder, place)
        yield Tree(folder, commit, cache, remote)


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


def _share(clone: Path, folder: Path, place: Path) -> tuple[Path, str | None]:
    """Lay DVC's settings of the clone, with absolute paths, over those of the commit, whose remotes may be gone. They
    may hold a secret: the place is the user's alone, and removed.

    Returns:
        The folder of the cache, and the name of the remote to ask.
    """
    of_clone = Config(str((clone / _DVC).resolve()), validate=False)
    cache = Path(of_clone.get("cache", {}).get("dir") or (clone / _DVC / "cache").resolve())
    of_tree = Config(str(folder / _DVC), validate=False)
    with of_tree.edit("local", validate=False) as local:
        for level in ("repo", "local"):
            for section, settings in of_clone.read(level).items():
                _merge(local.setdefault(section, {}), settings)
        local["cache"]["dir"] = str(cache)
        # Otherwise something of each of these trees would stay in the cache that all projects of the machine share.
        local["core"]["site_cache_dir"] = str(place / "site")
    remote = of_tree.get("core", {}).get("remote")
    for level in ("repo", "local"):
        with of_tree.edit(level, validate=False) as settings:
            settings["core"].pop("remote", None)
    return cache, remote


def _merge(into: dict[str, object], settings: Mapping[str, object]) -> None:
    for name, value in settings.items():
        there = into.setdefault(name, value)
        if isinstance(there, dict) and isinstance(value, Mapping):
            _merge(there, value)
        else:
            into[name] = value
