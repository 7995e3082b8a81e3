"""Committing what a run made, without a working tree.

The commit that is built upon is a pull request's: checking it out would let links in it decide where files are written,
and attributes of it what is written. Git's objects know neither.
"""

import base64
import tempfile
from collections.abc import Mapping
from pathlib import Path

from excise.gitops.git import answer, git
from excise.plumbing.errors import StageError

_NAME = "github-actions[bot]"
_ADDRESS = "41898282+github-actions[bot]@users.noreply.github.com"
_NOBODY = {
    "GIT_AUTHOR_NAME": _NAME,
    "GIT_AUTHOR_EMAIL": _ADDRESS,
    "GIT_COMMITTER_NAME": _NAME,
    "GIT_COMMITTER_EMAIL": _ADDRESS,
}
"""Who commits where git knows nobody, as on GitHub's own machines."""


def record(project: Path, parent: str, files: Mapping[str, bytes], emptied: str, message: str) -> str:
    """Commit files upon a commit.

    Args:
        files: contents by their paths in the project.
        emptied: a folder of the project in which no other file stays.

    Returns:
        The new commit; the parent itself where nothing differs from it.
    """
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
    return git(project, "commit-tree", tree, "-p", parent, "-m", message, environment=identity).strip()


def push(project: Path, commit: str, parent: str, branch: str, credentials: Mapping[str, str]) -> bool:
    """Push a commit to a branch of origin that is still where it was; whether it was.

    Args:
        parent: where the branch must be.
        credentials: of `header`, or empty.

    Raises:
        StageError: the branch is where it was, and yet origin refuses.
    """
    reference = f"refs/heads/{branch}"

    def stands() -> bool:
        listed = git(project, "ls-remote", "origin", reference, environment=credentials)
        return f"{parent}\t{reference}" in listed.splitlines()  # also others that end alike are listed

    if not stands():
        return False
    try:
        git(project, "push", "--quiet", "origin", f"{commit}:{reference}", environment=credentials)
    except StageError:
        if stands():
            raise
        return False  # somebody was quicker
    return True


def fetch(project: Path, commit: str, credentials: Mapping[str, str]) -> None:
    """Have a commit of origin's here."""
    if answer(project, "cat-file", "-e", f"{commit}^{{commit}}") is None:
        git(project, "fetch", "--quiet", "origin", commit, environment=credentials)


def header(token: str, server: str) -> dict[str, str]:
    """What makes git show a token to a server, and to no other. It stands in no file and in no command line."""
    shown = base64.b64encode(f"x-access-token:{token}".encode()).decode()
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"http.{server}/.extraheader",
        "GIT_CONFIG_VALUE_0": f"AUTHORIZATION: basic {shown}",
    }
