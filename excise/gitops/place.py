"""A temporary folder within the clone, on whose file system DVC's links work as they do for the clone itself."""

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from excise.gitops.git import answer

WITHIN = Path(".dvc/tmp/models")
"""git and DVC leave it alone. Its folders are the user's alone: they hold DVC's settings, which may be secret."""

_LOCK = "lock"


@contextlib.contextmanager
def temporary_place(clone: Path) -> Iterator[Path]:
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
    for tree in place.glob("*/tree"):
        answer(clone, "worktree", "remove", "--force", "--force", str(tree))
    shutil.rmtree(place, ignore_errors=True)
