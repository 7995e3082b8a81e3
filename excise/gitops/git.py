"""What git knows: commits, and files of commits; and committing what a run made, without a working tree: links and
attributes of a pull request's commit would decide where files are written, and which bytes."""

import base64
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from excise.plumbing.errors import StageError

_BOT = {"NAME": "github-actions[bot]", "EMAIL": "41898282+github-actions[bot]@users.noreply.github.com"}
_NOBODY = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER") for what, value in _BOT.items()}
"""Who commits where git knows nobody, as on GitHub's own machines."""


def answer(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails, or is not there."""
    try:
        return git(folder, *arguments)
    except (StageError, OSError):
        return None


def git(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """What git prints, with variables added to this process's, such as a token. Raises `StageError` where it fails."""
    try:
        done = _run(folder, arguments, environment or {})
    except FileNotFoundError:
        raise StageError("git is not installed, or not in PATH") from None
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"it exited with {done.returncode}"]
        # Of a push that is refused, the last line says no more than that.
        refusals = (line for line in lines if line.startswith("remote: error:") or "rejected]" in line)
        raise StageError(f"`git {arguments[0]}` failed: {next(refusals, lines[-1]).removeprefix('fatal: ')}")
    return done.stdout.decode(errors="replace")


def commit_of(folder: Path, revision: str) -> str:
    """The 40 digits of a commit by any name. Raises `StageError` where it is not in this repository."""
    asked = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    found = (answer(folder, *asked) or "").strip()
    if not re.fullmatch("[0-9a-f]{40}", found):
        raise StageError(f"{revision} is no commit of this repository; `git fetch` brings those that others made")
    return found


def file_of(folder: Path, commit: str, path: str) -> str | None:
    """The text of a project's file at a commit; None where it has none."""
    return answer(folder, "show", f"{commit}:./{path}")


def contents(folder: Path, objects: Sequence[str]) -> list[bytes]:
    """The bytes of blobs, in one process. Raises `StageError` where one is not here."""
    data = _run(folder, ("cat-file", "--batch"), {}, "".join(f"{each}\n" for each in objects).encode()).stdout
    found = []
    for each in objects:
        head, _, data = data.partition(b"\n")
        name, kind, size = [*head.decode().split(), "", ""][:3]
        if (name, kind) != (each, "blob"):
            raise StageError(f"git does not have the object {each} here; `git fetch` brings it")
        found.append(data[: int(size)])
        data = data[int(size) + 1 :]
    return found


def record(project: Path, parent: str, files: Mapping[str, bytes], emptied: str, message: str) -> str:
    """Commit files, by their paths in the project, upon a parent; no other file stays in the folder `emptied`. Returns
    the new commit, which is the same one each time, or the parent where nothing differs."""
    within = git(project, "rev-parse", "--show-prefix").strip()
    with tempfile.TemporaryDirectory(prefix="excise-") as temporary:
        index = {"GIT_INDEX_FILE": str(Path(temporary) / "index")}
        git(project, "read-tree", parent, environment=index)
        # Forced: that it differs from what is checked out here is no reason to keep it.
        git(project, "rm", "-rf", "--cached", "--quiet", "--ignore-unmatch", "--", emptied, environment=index)
        for path, data in files.items():
            content = Path(temporary) / "content"
            content.write_bytes(data)
            blob = git(project, "hash-object", "-w", "--no-filters", str(content)).strip()
            # Where a file of the branch is in the way of a folder of ours, ours replaces it.
            entry = f"100644,{blob},{within}{path}"
            git(project, "update-index", "--add", "--replace", "--cacheinfo", entry, environment=index)
        tree = git(project, "write-tree", environment=index).strip()
    if tree == git(project, "rev-parse", f"{parent}^{{tree}}").strip():
        return parent
    identity = {} if answer(project, "config", "user.email") else _NOBODY
    # The parent's date, not today's: when this is repeated, `push` knows the commit again.
    date = f"@{git(project, 'show', '--no-patch', '--format=%ct', parent).strip()} +0000"
    dated = {**identity, "GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
    return git(project, "commit-tree", tree, "-p", parent, "-m", message, environment=dated).strip()


def push(project: Path, commit: str, parent: str, branch: str, credentials: Mapping[str, str]) -> bool:
    """Have a branch of origin at a commit, if it is at the parent; whether it is at the commit now, which may also have
    been pushed before. Raises `StageError` where origin refuses, or does not answer."""
    reference = f"refs/heads/{branch}"

    def tip() -> str:
        listed = git(project, "ls-remote", "origin", reference, environment=credentials)
        # Others that end alike are listed, too.
        return next((line[:40] for line in listed.splitlines() if line[40:] == f"\t{reference}"), "")

    found = tip()
    if found == parent != commit:
        try:
            git(project, "push", "--quiet", "origin", f"{commit}:{reference}", environment=credentials)
            return True
        except StageError:
            found = tip()  # somebody may have been quicker, or the connection ended behind the push
            if found == parent:
                raise
    return found == commit


def fetch(project: Path, commit: str, credentials: Mapping[str, str]) -> None:
    """Have a commit of origin's here."""
    if answer(project, "cat-file", "-e", f"{commit}^{{commit}}") is None:
        git(project, "fetch", "--quiet", "origin", commit, environment=credentials)


def header(token: str, server: str) -> dict[str, str]:
    """What makes git show a token to a server, and to no other, and give up after a minute without a byte. It stands in
    no file and in no command line."""
    shown = base64.b64encode(f"x-access-token:{token}".encode()).decode()
    settings = {
        f"http.{server}/.extraheader": f"AUTHORIZATION: basic {shown}",
        "http.lowSpeedLimit": "1",  # bytes a second
        "http.lowSpeedTime": "60",
    }
    variables = {"GIT_CONFIG_COUNT": str(len(settings))}
    for number, (key, value) in enumerate(settings.items()):
        variables |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return variables


def _run(
    folder: Path, arguments: Sequence[str], environment: Mapping[str, str], text: bytes = b""
) -> "subprocess.CompletedProcess[bytes]":
    variables = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C", **environment}
    return subprocess.run(["git", *arguments], cwd=folder, env=variables, input=text, capture_output=True)
