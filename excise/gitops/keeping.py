"""A runner's cache, filled before a commit's own code runs, and kept in the remote afterwards, by code that the commit
did not write: these commands hold the remote's keys, and read the commit, and what its run left, as data."""

from pathlib import Path

from excise.gitops.git import commit_of
from excise.gitops.handover import accept, record_run
from excise.gitops.storage import fetch_outputs, push_outputs, use_cache
from excise.plumbing.private.dvc import at_commit
from excise.plumbing.private.dvc_remote import forget_remote, has_remote


def fetch_commit(clone: Path, revision: str, cache: Path) -> None:
    """Fetch into a shared cache what a commit recorded and the remote has. Raises `StageError` where the remote fails,
    or has other bytes than were recorded."""
    commit = commit_of(clone, revision)
    use_cache(clone, cache)
    with at_commit(clone, commit, with_remote=True) as repo:
        if has_remote(repo):
            forget_remote(repo)
            fetch_outputs(repo)


def keep(clone: Path, revision: str, handover: Path, cache: Path) -> None:
    """Push from a shared cache to the remote what a run of a commit made, as its handover records it. Raises
    `StageError` where the handover is not acceptable, or the cache does not have what it records."""
    commit = commit_of(clone, revision)
    use_cache(clone, cache)
    recorded = record_run(clone, commit, accept(handover))
    with at_commit(clone, recorded, with_remote=True) as repo:
        push_outputs(repo)
