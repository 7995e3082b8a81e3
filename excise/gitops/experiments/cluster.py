"""Experiments on many machines: each runs some in its own clone and pushes them to the git origin, and any machine
makes the tables of what is there. Their data is in the DVC remote."""

from collections.abc import Collection, Sequence
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo

from excise.gitops.experiments.local import command_for, head, make_room, reference, starting_from, what_runs
from excise.gitops.experiments.tables import PARAMS, check_document, is_of, tabulate
from excise.gitops.git import answer, git
from excise.gitops.lock import LOCK
from excise.gitops.programs import environment, run, run_or_fail, say
from excise.gitops.storage import outputs
from excise.plumbing.errors import StageError
from schemas.experiments import Planned, load

ORIGIN = "origin"
_HERE = Path()


def sizes(path: Path) -> tuple[int, int]:
    """How many experiments of a file run before the others, as what they make serves them, and how many there are."""
    _, groups = load(path, PARAMS)
    return len(groups), sum(map(len, groups))


def run_experiment(path: Path, number: int) -> None:
    """Run one experiment of a file in this clone and push it: what one task of a cluster's job array does. One that is
    at the origin already is not run again. Raises `StageError` where there is no such experiment, it fails, or it
    cannot be pushed.

    Args:
        number: from 1; the first experiment of each group comes before all others.
    """
    _, groups = load(path, PARAMS)
    ordered = in_order(groups)
    if not 1 <= number <= len(ordered):
        raise StageError(f"{path} has the experiments 1 to {len(ordered)}, and no number {number}")
    experiment, first = ordered[number - 1]
    baseline = _committed()
    there = _fetch({experiment.name, first.name}, baseline)
    if experiment.name in there and is_of(there[experiment.name], experiment):
        print(f"{experiment.name}: already at {ORIGIN}")
        return
    _require_remote()
    if experiment is not first and first.name not in there:
        say(f"{first.name} is not at {ORIGIN}: what it would have made is made here")
    make_room([experiment.name], baseline)
    with starting_from(there.get(first.name, baseline)):
        unbuffered = {**environment(), "PYTHONUNBUFFERED": "1"}
        done = run(command_for(experiment, "--temp", "--pull"), _HERE, unbuffered, shown=True)
    if done.code != 0:
        raise StageError(f"{experiment.name}: {done.error}")
    _push(experiment.name, baseline)
    print(f"{experiment.name}: pushed to {ORIGIN}")


def collect(path: Path) -> None:
    """Fetch the experiments of a file that other machines ran, and write what they found into its document as tables,
    at the commit that they started from. Those that are not at the origin are named, one line each, and the exit code
    is 1; the rest is tabulated all the same. Raises `StageError` where none is at the origin."""
    file, groups = load(path, PARAMS)
    check_document(file, path)
    baseline = head()
    there = _fetch([each.name for group in groups for each in group], baseline)
    if not there:
        raise StageError(
            f"{ORIGIN} has no experiment of {path} that started from {baseline[:10]}; check out the commit that they "
            "did start from"
        )
    missing = f"is not at {ORIGIN}: it failed or did not run yet, as the log of its job says"
    tabulate(file, path, groups, there, lambda _: missing)


def in_order(groups: Sequence[Sequence[Planned]]) -> list[tuple[Planned, Planned]]:
    """Every experiment with the first one of its group, in the order in which they may run."""
    firsts = [(first, first) for first, *_ in groups]
    return firsts + [(each, first) for first, *others in groups for each in others]


def _committed() -> str:
    """The commit that is checked out, with nothing changed since: elsewhere there is nothing else to start from.

    A run that was killed leaves dvc.lock changed and files aside (`starting_from`): these are put back.
    """
    _, others = what_runs()
    aside = git(_HERE, "ls-files", "--deleted", "--", *map(str, others)).splitlines() if others else []
    if aside:
        git(_HERE, "checkout", "--quiet", "HEAD", "--", LOCK, *aside)
    if changed := git(_HERE, "diff", "--name-only", "HEAD", "--", ".", f":!{LOCK}").splitlines():
        what = "commit them first: experiments of many machines start from a commit"
        raise StageError(f"{changed[0]} has changes; {what}")
    return head()


def _fetch(names: Collection[str], baseline: str) -> dict[str, str]:
    """Bring those of these experiments that are at the origin, in place of any of the same name: their names and git
    references."""
    if answer(_HERE, "remote", "get-url", ORIGIN) is None:
        raise StageError(f"this clone has no git remote called {ORIGIN}, where machines share their experiments")
    listed = answer(_HERE, "ls-remote", ORIGIN, reference(baseline, "*"))
    if listed is None:
        raise StageError(f"{ORIGIN} cannot be reached; `git ls-remote {ORIGIN}` says why")
    there = {line.partition("\t")[2] for line in listed.splitlines()}
    found = {name: reference(baseline, name) for name in names if reference(baseline, name) in there}
    if found:
        # The plus replaces: two machines may have run one experiment, and what is at the origin counts.
        git(_HERE, "fetch", "--quiet", ORIGIN, *(f"+{name}:{name}" for name in found.values()))
    return found


def _require_remote() -> None:
    """Raises `StageError`, before an experiment runs, where there is no DVC remote, or its plugin is not installed."""
    try:
        with Repo() as repo:
            repo.cloud.get_remote()
    except DvcException as error:
        raise StageError(f"a DVC remote is where machines share their data: {error}") from None


def _push(name: str, baseline: str) -> None:
    """Push an experiment that ran here: its data first, so that what is at the origin is whole."""
    commit = git(_HERE, "rev-parse", reference(baseline, name)).strip()
    stages, _ = what_runs()
    try:
        with Repo() as repo:
            for _ in repo.brancher(revs=[commit], workspace=False):
                made = [output for output in outputs(repo) if output.pushed and output.stage in stages]
                if lost := next((output for output in made if output.lacking), None):
                    raise StageError(f"{name} ran, but DVC did not keep {lost.name} in its cache: is the disk full?")
            repo.push(targets=sorted(stages), revs=[commit], workspace=False)
    except (DvcException, OSError) as error:
        raise StageError(f"{name} ran, but the DVC remote does not take its files: {error}") from None
    run_or_fail("dvc", "exp", "push", "--force", "--no-cache", ORIGIN, reference(baseline, name))
