"""A past commit's temporary working tree, with the clone's cache, and with its own packages on request."""

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from excise.gitops.git import answer, file_of, git
from excise.gitops.programs import environment, run
from excise.plumbing.errors import StageError
from excise.plumbing.private.dvc import lend_settings

WITHIN = Path(".dvc/tmp/models")
"""On the clone's file system, for DVC's links; only the user may read its folders, which hold DVC's secret settings."""
REQUIREMENTS = "requirements.lock"

PLACE_LOCK, _TREE = "lock", "tree"
_NO_HOOKS = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.hooksPath", "GIT_CONFIG_VALUE_0": "/dev/null"}


@dataclass(frozen=True)
class Tree:
    """A working tree, for as long as it is there."""

    folder: Path
    commit: str
    place: Path  # the temporary folder that it lies in


@contextlib.contextmanager
def commit_tree(clone: Path, commit: str) -> Iterator[Tree]:
    """The working tree of a commit, gone when the block ends. DVC asks no remote for it."""
    within = git(clone, "rev-parse", "--show-prefix").strip()  # where the project is a folder of its repository
    with _temporary_place(clone) as place:
        # Without hooks: that of `dvc install` would look for every output, in a cache that is not set up yet.
        git(clone, "worktree", "add", "--quiet", "--detach", str(place / _TREE), commit, environment=_NO_HOOKS)
        folder = place / _TREE / within
        lend_settings(clone, folder, place / "site")
        yield Tree(folder, commit, place)


def compare_requirements(clone: Path, commit: str) -> Literal["same", "other", "none"]:
    """Whether a commit's requirements.lock is the one that lies here; `none` where it has none."""
    if (there := file_of(clone, commit, REQUIREMENTS)) is None:
        return "none"
    path = clone / REQUIREMENTS
    return "same" if path.is_file() and path.read_bytes().decode(errors="replace") == there else "other"


def locked_environment(tree: Tree) -> dict[str, str]:
    """The environment variables under which Python has what a commit's requirements.lock pins, which is installed first
    for as long as the tree exists. Raises `StageError` where it cannot be installed."""
    locked = f"{REQUIREMENTS} of {tree.commit[:12]}"
    print(f"Installing {locked}, only for this run (the whole of it takes minutes, and 2 GB)", flush=True)
    began, prefix = time.monotonic(), tree.place / "environment"
    # Without what would put other packages before those of the environment.
    variables = {name: value for name, value in environment().items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement", REQUIREMENTS)
    for command in ([sys.executable, "-m", "venv", str(prefix)], [str(prefix / "bin/python"), *install]):
        done = run(command, tree.folder, variables)
        if done.code != 0:
            raise StageError(f"{locked} cannot be installed here: {done.error}")
    megabytes = sum(path.lstat().st_size for path in prefix.rglob("*")) / 1e6
    print(f"Installed in {time.monotonic() - began:.0f} s ({megabytes:,.0f} MB)", flush=True)
    path = os.pathsep.join([str(prefix / "bin"), os.environ.get("PATH", "")])
    return {**variables, "PATH": path, "VIRTUAL_ENV": str(prefix)}


@contextlib.contextmanager
def _temporary_place(clone: Path) -> Iterator[Path]:
    """An empty folder that is gone when the block ends. What a killed run left is swept first."""
    within = (clone / WITHIN).resolve()
    within.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with FileLock(within / PLACE_LOCK):
            for left in filter(Path.is_dir, within.iterdir()):
                # The lock is the kernel's, and ends with the process that holds it.
                with contextlib.suppress(Timeout), FileLock(left / PLACE_LOCK, blocking=False):
                    remove_place(clone, left)
            place = Path(tempfile.mkdtemp(dir=within))
            stack.callback(remove_place, clone, place)
            stack.enter_context(FileLock(place / PLACE_LOCK))
        yield place


def remove_place(clone: Path, place: Path) -> None:
    """Remove a temporary folder with the working tree that lies in it, as far as that can be."""
    # Twice forced, as one that was interrupted while it was made is locked.
    answer(clone, "worktree", "remove", "--force", "--force", str(place / _TREE))
    shutil.rmtree(place, ignore_errors=True)
