"""Experiments at the git origin, by way of which machines hand them to each other; their data is in the DVC remote."""

from collections.abc import Collection
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo

from excise.gitops.cache import outputs
from excise.gitops.experiments.commands import output_of
from excise.gitops.experiments.queue import reference
from excise.gitops.git import answer, git
from excise.plumbing.errors import StageError

ORIGIN = "origin"
_HERE = Path()


def fetch(names: Collection[str], baseline: str) -> dict[str, str]:
    """Bring those of these experiments that are at the origin, in place of any of the same name.

    Returns:
        Their names and git references.

    Raises:
        StageError: the origin cannot be reached.
    """
    if answer(_HERE, "remote", "get-url", ORIGIN) is None:
        raise StageError(f"this clone has no git remote called {ORIGIN}, where machines hand over their experiments")
    listed = answer(_HERE, "ls-remote", ORIGIN, reference(baseline, "*"))
    if listed is None:
        raise StageError(f"{ORIGIN} cannot be reached; `git ls-remote {ORIGIN}` says why")
    there = {line.partition("\t")[2] for line in listed.splitlines()}
    found = {name: reference(baseline, name) for name in names if reference(baseline, name) in there}
    if found:
        # The plus replaces: two machines may have run one experiment, and what is at the origin counts.
        git(_HERE, "fetch", "--quiet", ORIGIN, *(f"+{name}:{name}" for name in found.values()))
    return found


def require_remote() -> None:
    """Find out before an experiment runs whether its data can be handed over.

    Raises:
        StageError: there is no DVC remote, or its plugin is not installed.
    """
    try:
        with Repo() as repo:
            repo.cloud.get_remote()
    except DvcException as error:
        raise StageError(f"a DVC remote is where machines hand over their data: {error}") from None


def push(name: str, baseline: str) -> None:
    """Hand over an experiment that ran here: its data first, so that what is at the origin is whole.

    Raises:
        StageError: the DVC remote or the origin does not take it.
    """
    commit = git(_HERE, "rev-parse", reference(baseline, name)).strip()
    try:
        with Repo() as repo:
            for _ in repo.brancher(revs=[commit], workspace=False):
                if lost := next((output for output in outputs(repo) if output.pushed and output.lacking), None):
                    raise StageError(f"{name} ran, but DVC did not keep {lost.name} in its cache: is the disk full?")
            repo.push(revs=[commit], workspace=False)
    except (DvcException, OSError) as error:
        raise StageError(f"{name} ran, but the DVC remote does not take its files: {error}") from None
    output_of("dvc", "exp", "push", "--force", "--no-cache", ORIGIN, reference(baseline, name))
