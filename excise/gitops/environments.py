"""The packages that a commit's stages run with: those installed here, or those of its own requirements.lock."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from excise.gitops.git import file_of
from excise.gitops.processes import run
from excise.gitops.tree import here
from excise.plumbing.errors import StageError

REQUIREMENTS = "requirements.lock"


def compare_requirements(clone: Path, commit: str) -> Literal["same", "other", "none"]:
    """Whether a commit's requirements.lock is the one that lies here; `none` where it has none."""
    there = file_of(clone, commit, REQUIREMENTS)
    if there is None:
        return "none"
    path = clone / REQUIREMENTS
    return "same" if path.is_file() and path.read_bytes().decode(errors="replace") == there else "other"


def locked_environment(tree: Path, place: Path, commit: str, say: Callable[[str], None]) -> dict[str, str]:
    """Make the environment that a commit's requirements.lock pins, in a temporary place.

    Returns:
        This process's environment variables, with that environment's Python first.

    Raises:
        StageError: it cannot be installed.
    """
    say(f"Installing {REQUIREMENTS} of {commit[:12]}, for this run alone (the whole of it takes minutes, and 2 GB)")
    began = time.monotonic()
    environment = place / "environment"
    programs = environment / "bin"
    for command in (
        [sys.executable, "-m", "venv", str(environment)],
        [
            str(programs / "python"),
            *("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement", REQUIREMENTS),
        ],
    ):
        done = run(command, tree, _without_python(here()))
        if done.code != 0:
            raise StageError(f"{REQUIREMENTS} of {commit[:12]} cannot be installed here: {done.error}")
    megabytes = sum(path.lstat().st_size for path in environment.rglob("*")) / 1e6
    say(f"Installed in {time.monotonic() - began:.0f} s ({megabytes:,.0f} MB)")
    path = os.pathsep.join([str(programs), os.environ.get("PATH", "")])
    return {**_without_python(here()), "PATH": path, "VIRTUAL_ENV": str(environment)}


def _without_python(environment: dict[str, str]) -> dict[str, str]:
    """Without what would put other packages before those of the environment."""
    return {name: value for name, value in environment.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
