"""What git knows: commits, and files of commits."""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from excise.plumbing.errors import StageError

_WHOLE = re.compile(r"[0-9a-f]{40}")


def answer(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails, or is not there."""
    try:
        done = _run(folder, arguments, {})
    except OSError:
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def git(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """What git prints.

    Args:
        environment: variables beside those of this process. A token is given so: no other process sees it.

    Raises:
        StageError: it fails; with git's last line.
    """
    try:
        done = _run(folder, arguments, environment or {})
    except FileNotFoundError:
        raise StageError("git is not installed, or not in PATH") from None
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        # Of a push that is refused, the last line says no more than that.
        refusal = next((line for line in lines if line.startswith("remote: error:") or "rejected]" in line), None)
        reason = refusal or (lines[-1] if lines else f"it exited with {done.returncode}")
        raise StageError(f"`git {arguments[0]}` failed: {reason.removeprefix('fatal: ')}")
    return done.stdout.decode(errors="replace")


def commit_of(folder: Path, revision: str) -> str:
    """The 40 digits of a commit that may be named otherwise: shortened, a branch, a tag.

    Raises:
        StageError: there is no such commit here.
    """
    found = (
        answer(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}") or ""
    ).strip()
    if not _WHOLE.fullmatch(found):
        raise StageError(f"{revision} is no commit of this repository; `git fetch` brings those that others made")
    return found


def file_of(folder: Path, commit: str, path: str) -> str | None:
    """The text of a project's file at a commit; None where it has none."""
    return answer(folder, "show", f"{commit}:./{path}")


def contents(folder: Path, objects: Sequence[str]) -> list[bytes]:
    """Of blobs, by the digits of each, in one process of git's.

    Raises:
        StageError: there is no such object here.
    """
    done = _run(folder, ("cat-file", "--batch"), {}, "".join(f"{each}\n" for each in objects).encode())
    data, found = done.stdout, []
    for each in objects:
        head, _, data = data.partition(b"\n")
        name, kind, size = [*head.decode().split(), "", ""][:3]
        if (name, kind) != (each, "blob"):
            raise StageError(f"git does not have the object {each} here; `git fetch` brings it")
        found.append(data[: int(size)])
        data = data[int(size) + 1 :]
    return found


def _run(
    folder: Path, arguments: tuple[str, ...], environment: Mapping[str, str], text: bytes = b""
) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C", **environment},
        input=text,
        capture_output=True,
    )
