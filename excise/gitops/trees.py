"""A past commit's working tree in a temporary place of the clone, with the clone's own cache, remotes and credentials,
and, where asked for, with the packages that the commit pins."""

import contextlib
import fcntl
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dvc.config import Config, merge

from excise.gitops.git import answer, file_of, git
from excise.gitops.programs import Done, environment, run, say
from excise.plumbing.errors import StageError

WITHIN = Path(".dvc/tmp/models")
"""On the clone's file system, where DVC's links work as they do for the clone itself; git and DVC leave it alone. Its
folders are the user's alone: they hold DVC's settings, which may be secret."""
REQUIREMENTS = "requirements.lock"

_DVC = Path(".dvc")
_LOCK, _TREE = "lock", "tree"
_NO_HOOKS = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.hooksPath", "GIT_CONFIG_VALUE_0": "/dev/null"}


@dataclass(frozen=True)
class Tree:
    """A working tree, for as long as it is there."""

    folder: Path
    commit: str
    place: Path
    """The temporary folder that it lies in."""
    cache: Path
    """DVC's, which all working trees of the clone share."""
    remote: str | None
    """The one to ask. DVC itself does not know it at first: it would fail on one that it cannot use, even where it
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
        with Config(str(self.folder / _DVC), validate=False).edit("local", validate=False) as local:
            local["core"]["remote"] = self.remote

    def dvc(self, *arguments: str) -> Done:
        """A command of the DVC that is installed here."""
        return run(["dvc", *arguments], self.folder)

    def check_is_recorded(self, target: str) -> None:
        """Raises `StageError` where its dvc.lock is not of its own code and parameters, as far as a stage and those
        before it go."""
        done = self.dvc("status", "--json", "--with-deps", target)
        if done.code != 0:
            raise StageError(f"DVC cannot read the stages of {self.commit[:12]}: {done.error}")
        if changed := changed_since(done.output):
            raise StageError(
                f"at {self.commit[:12]} dvc.lock is not of its own {changed}: `dvc repro` had not run yet; name the "
                "commit that recorded its results"
            )


@contextlib.contextmanager
def commit_tree(clone: Path, commit: str) -> Iterator[Tree]:
    """The working tree of a commit, gone when the block ends."""
    within = git(clone, "rev-parse", "--show-prefix").strip()  # where the project is a folder of its repository
    with _temporary_place(clone) as place:
        # Without hooks: that of `dvc install` would look for every output, in a cache that is not set up yet.
        git(clone, "worktree", "add", "--quiet", "--detach", str(place / _TREE), commit, environment=_NO_HOOKS)
        folder = place / _TREE / within
        cache, remote = _share(clone, folder, place)
        yield Tree(folder, commit, place, cache, remote)


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


def compare_requirements(clone: Path, commit: str) -> Literal["same", "other", "none"]:
    """Whether a commit's requirements.lock is the one that lies here; `none` where it has none."""
    if (there := file_of(clone, commit, REQUIREMENTS)) is None:
        return "none"
    path = clone / REQUIREMENTS
    return "same" if path.is_file() and path.read_bytes().decode(errors="replace") == there else "other"


def locked_environment(tree: Tree) -> dict[str, str]:
    """Install what a commit's requirements.lock pins, in the tree's temporary place: this process's environment
    variables, with that environment's Python first. Raises `StageError` where it cannot be installed."""
    locked = f"{REQUIREMENTS} of {tree.commit[:12]}"
    say(f"Installing {locked}, only for this run (the whole of it takes minutes, and 2 GB)")
    began, prefix = time.monotonic(), tree.place / "environment"
    # Without what would put other packages before those of the environment.
    variables = {name: value for name, value in environment().items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement", REQUIREMENTS)
    for command in ([sys.executable, "-m", "venv", str(prefix)], [str(prefix / "bin/python"), *install]):
        done = run(command, tree.folder, variables)
        if done.code != 0:
            raise StageError(f"{locked} cannot be installed here: {done.error}")
    megabytes = sum(path.lstat().st_size for path in prefix.rglob("*")) / 1e6
    say(f"Installed in {time.monotonic() - began:.0f} s ({megabytes:,.0f} MB)")
    path = os.pathsep.join([str(prefix / "bin"), os.environ.get("PATH", "")])
    return {**variables, "PATH": path, "VIRTUAL_ENV": str(prefix)}


def copy_file(source: str, target: str) -> None:
    """Copy a file to one of its own, which may be changed; their blocks are shared where the file system can do that,
    and no link leads back."""
    try:
        if sys.platform != "linux":
            raise OSError
        with open(source, "rb") as old, open(target, "wb") as new:
            left = os.fstat(old.fileno()).st_size
            while left:
                copied = os.copy_file_range(old.fileno(), new.fileno(), left)
                if not copied:  # some file systems answer 0 where they mean that they cannot
                    raise OSError
                left -= copied
    except OSError:  # not on this file system, or not between these two
        shutil.copyfile(source, target)


@contextlib.contextmanager
def _temporary_place(clone: Path) -> Iterator[Path]:
    """An empty folder that is gone when the block ends. What a killed run left is swept first."""
    within = (clone / WITHIN).resolve()
    within.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with open(within / _LOCK, "w") as one_at_a_time:
            fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
            for left in within.iterdir():
                if left.is_dir() and not _is_held(left):
                    _remove(clone, left)
            place = Path(tempfile.mkdtemp(dir=within))
            stack.callback(_remove, clone, place)
            held = stack.enter_context(open(place / _LOCK, "w"))
            fcntl.flock(held, fcntl.LOCK_EX)
        yield place


def _is_held(place: Path) -> bool:
    """Whether a run uses it: the lock is the kernel's, and ends with the process that holds it."""
    try:
        with open(place / _LOCK, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _remove(clone: Path, place: Path) -> None:
    # Twice forced, as one that was interrupted while it was made is locked.
    answer(clone, "worktree", "remove", "--force", "--force", str(place / _TREE))
    shutil.rmtree(place, ignore_errors=True)


def _share(clone: Path, folder: Path, place: Path) -> tuple[Path, str | None]:
    """Lay DVC's settings of the clone, with absolute paths, over those of the commit, whose remotes may be gone; the
    folder of the cache, and the name of the remote to ask. The settings may hold a secret: the place is the user's
    alone, and removed."""
    of_clone = Config(str((clone / _DVC).resolve()), validate=False)
    cache = Path(of_clone.get("cache", {}).get("dir") or (clone / _DVC / "cache").resolve())
    of_tree = Config(str(folder / _DVC), validate=False)
    with of_tree.edit("local", validate=False) as local:
        for level in ("repo", "local"):
            merge(local, of_clone.read(level))
        local["cache"]["dir"] = str(cache)
        # Otherwise something of each of these trees would stay in the cache that all projects of the machine share.
        local["core"]["site_cache_dir"] = str(place / "site")
    remote = of_tree.get("core", {}).get("remote")
    for level in ("repo", "local"):
        with of_tree.edit(level, validate=False) as settings:
            settings["core"].pop("remote", None)
    return cache, remote
