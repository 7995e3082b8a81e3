"""DVC's cache and remote, on a machine that runs what others pushed."""

from pathlib import Path
from typing import Any

from excise.commands.parser import ITS_CACHE, PROJECT, arg, at_least_one, command

NO_REMOTE = arg("--no-remote", action="store_true", help="do not ask the remote")
CACHE = arg("--cache", type=Path, required=True, metavar="DIR", help="the cache that the machine's clones share")


@command(
    ITS_CACHE,
    NO_REMOTE,
    arg("--copies", action="store_true", help="from now on, link no file to the cache"),
)
def restore(cache: Path | None, no_remote: bool, copies: bool) -> None:
    """Restore this commit's outputs from DVC's cache or its remote."""
    from excise.gitops import storage

    storage.restore(PROJECT, cache, not no_remote, copies)


@command(NO_REMOTE)
def rerun(no_remote: bool) -> None:
    """Run every stage that is out of date, and fetch the outputs of the others from the DVC remote."""
    from excise.gitops import storage

    storage.repro(PROJECT, may_pull=not no_remote)


@command(arg("commit", help="or a branch or tag"), CACHE)
def fetch(commit: str, cache: Path) -> None:
    """Fetch what a commit recorded from the DVC remote into a shared cache, without running its code."""
    from excise.gitops.keeping import fetch_commit

    fetch_commit(PROJECT, commit, cache)


@command(arg("commit", help="that ran"), arg("folder", type=Path, help="what `hand-over` copied"), CACHE)
def keep(commit: str, folder: Path, cache: Path) -> None:
    """Push what a run of a commit made from a shared cache to the DVC remote, without running its code."""
    from excise.gitops import keeping

    keeping.keep(PROJECT, commit, folder, cache)


@command()
def push() -> None:
    """Push to the DVC remote what it lacks."""
    from excise.gitops import storage

    storage.push(PROJECT)


@command(
    arg("--yes", action="store_true", help="remove it; otherwise it is only listed"),
    arg("--all-commits", action="store_true", help="keep what any commit names, not only the newest of each branch"),
    arg("--projects", type=Path, nargs="+", default=[], metavar="PATH", help="all other clones that share the cache"),
    arg("--shared", action="store_true", help="also drop from a shared cache what only other clones name"),
    arg("--days", type=at_least_one, default=90, help="how long verdicts and unfinished answers are kept unused (90)"),
)
def clean(yes: bool, **options: Any) -> None:
    """Remove from this disk what no branch, tag, experiment or stash needs, nor the working tree."""
    from excise.gitops import cleaning

    cleaning.clean(PROJECT, remove=yes, **options)


@command(
    arg("checks", nargs="*", metavar="CHECK", help="only these, such as remote: the words that the lines begin with"),
    arg("--deep", action="store_true", help="also read every object of the cache"),
)
def doctor(checks: list[str], deep: bool) -> None:
    """Say what is wrong with cache, remote, environment, runner and disk, and what mends it; change nothing."""
    from excise.gitops.doctor import examine

    examine(PROJECT, deep, checks)
