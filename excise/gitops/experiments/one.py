"""Run one experiment of a file in this clone and hand it over: what one task of a cluster's job array does.

`python -m excise.gitops.experiments.one FILE NUMBER`, or `make experiment FILE=… NUMBER=…`. Numbers begin at 1; the first experiment
of each group comes before all others, as what it makes serves them: `--firsts` prints how many these are, `--count` how
many experiments there are. One that is at the origin already is not run again. `excise.gitops.experiments.collect` makes the tables.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from excise.gitops.experiments import origin, queue
from excise.gitops.experiments.commands import overriding, show
from excise.gitops.experiments.results import PARAMS, is_of
from excise.gitops.git import git
from excise.gitops.processes import stoppable
from excise.plumbing.errors import StageError, run_stage
from schemas.experiments import Planned, load


def main() -> None:
    """Find the experiment; run and push it unless another machine has."""
    parser = argparse.ArgumentParser(description="Run one experiment of a file and push it.")
    parser.add_argument("file", type=Path)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("number", type=int, nargs="?", help="which, from 1")
    asked.add_argument("--firsts", action="store_true", help="print how many run before the others")
    asked.add_argument("--count", action="store_true", help="print how many there are")
    given = parser.parse_args()
    _, groups = load(given.file, PARAMS)
    if given.firsts or given.count:
        print(len(groups) if given.firsts else sum(map(len, groups)))
        return
    ordered = in_order(groups)
    if not 1 <= given.number <= len(ordered):
        raise StageError(f"{given.file} has the experiments 1 to {len(ordered)}, and no number {given.number}")
    experiment, first = ordered[given.number - 1]
    baseline = committed()
    there = origin.fetch({experiment.name, first.name}, baseline)
    if experiment.name in there and is_of(there[experiment.name], experiment):
        print(f"{experiment.name}: already at {origin.ORIGIN}")
        return
    origin.require_remote()
    if experiment is not first and first.name not in there:
        print(f"{first.name} is not at {origin.ORIGIN}: what it would have made is made here")
    with stoppable():  # what was changed for DVC's sake is put back
        run(experiment, there.get(first.name, baseline), baseline)
        origin.push(experiment.name, baseline)
    print(f"{experiment.name}: pushed to {origin.ORIGIN}")


def in_order(groups: Sequence[Sequence[Planned]]) -> list[tuple[Planned, Planned]]:
    """Every experiment with the first one of its group, in the order in which they may run."""
    firsts = [(first, first) for first, *_ in groups]
    return firsts + [(each, first) for first, *others in groups for each in others]


def committed() -> str:
    """The commit that is checked out, with nothing changed since: elsewhere there is nothing else to start from.

    dvc.lock alone may differ: a run that was killed leaves it so, and no run here begins with it.
    """
    changed = git(Path(), "diff", "--name-only", "HEAD", "--", ".", f":!{queue.LOCK}").splitlines()
    if changed:
        raise StageError(
            f"{changed[0]} has changes; commit them first: experiments of many machines start from a commit"
        )
    return queue.head()


def run(experiment: Planned, start: str, baseline: str) -> None:
    """Run an experiment in a temporary workspace.

    Args:
        start: the commit whose results are up to date where parameters agree.
        baseline: the commit that it is an experiment of.
    """
    queue.make_room([experiment.name], baseline)
    with queue.starting_from(start):
        try:
            show("dvc", "exp", "run", "--temp", "--pull", "--name", experiment.name, *overriding(experiment.arguments))
        except StageError as error:
            raise StageError(f"{experiment.name}: {error}") from None


if __name__ == "__main__":
    run_stage(main)
