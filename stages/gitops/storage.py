"""DVC's cache and remote on a machine that runs what others pushed. Either may be missing: neither is an error."""

import subprocess
from pathlib import Path

from stages.base.stage import StageError


def use_cache(folder: Path, cache: Path) -> None:
    """Have a clone use a cache that several clones share, which is made where it is not there yet.

    Raises:
        StageError: the cache's path is not absolute, so that it would be another one in each clone.
    """
    if not cache.is_absolute():
        raise StageError(f"the shared cache {cache} must be an absolute path")
    cache.mkdir(parents=True, exist_ok=True)
    _dvc(folder, "config", "--local", "cache.dir", str(cache))
    # Each file is writable by its group, for clones of several users.
    _dvc(folder, "config", "--local", "cache.shared", "group")


def has_remote(folder: Path) -> bool:
    """Whether there is a default remote."""
    asked = subprocess.run(["dvc", "config", "core.remote"], cwd=folder, capture_output=True, text=True)
    return asked.returncode == 0 and bool(asked.stdout.strip())


def pull(folder: Path) -> None:
    """Take what the remote has of this commit's outputs; edited models are not pushed, and may be missing there.

    Forced: what a run that was killed left is in no cache, and DVC would ask before it removes it.
    """
    _dvc(folder, "pull", "--allow-missing", "--force")


def checkout(folder: Path) -> None:
    """Take what the cache has of this commit's outputs. DVC itself looks there for most, but not for a base model."""
    _dvc(folder, "checkout", "--allow-missing", "--force")


def repro(folder: Path) -> None:
    """Run what is out of date. What is not, and is not here, is taken from the remote where there is one."""
    _dvc(folder, "repro", *(["--pull"] if has_remote(folder) else []))


def push(folder: Path) -> None:
    """Give the remote what it lacks."""
    _dvc(folder, "push")


def _dvc(folder: Path, *arguments: str) -> None:
    """Run DVC, which says for itself what is wrong."""
    done = subprocess.run(["dvc", *arguments], cwd=folder)
    if done.returncode != 0:
        raise StageError(f"`dvc {' '.join(arguments[:2])}` failed, as DVC says above; nothing was handed on")
