"""Run a file of experiments through DVC's queue, and write what they found into a document as tables.

`python -m excise.gitops.experiments.run [FILE] [--jobs N]`, or `make experiments FILE=… JOBS=…`. Every experiment's parameters are
checked before the first one is queued. Of each group one experiment runs first; the others find what it made, be it a
trained model or the base's answers. A failure is one line; the rest is tabulated all the same.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from excise.gitops.experiments import queue
from excise.gitops.experiments.results import PARAMS, check_document, tabulate
from excise.gitops.processes import stoppable
from excise.plumbing.errors import run_stage
from schemas.experiments import Planned, load


def main() -> None:
    """Plan, queue, wait, and write; fails at the end if an experiment did."""
    parser = argparse.ArgumentParser(description="Run a file of experiments and tabulate what they found.")
    parser.add_argument("file", type=Path, nargs="?", default=Path("experiments/moe.yaml"))
    parser.add_argument("--jobs", type=int, default=1, help="how many experiments run at once")
    given = parser.parse_args()
    if given.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {given.jobs}")
    file, groups = load(given.file, PARAMS)
    check_document(file, given.file)

    baseline = queue.head()
    with stoppable():  # what was changed for the queue's sake is put back
        run(groups, baseline, given.jobs)
    revisions = {each.name: queue.reference(baseline, each.name) for group in groups for each in group}
    tabulate(file, given.file, groups, revisions, queue.failure)


def run(groups: Sequence[Sequence[Planned]], baseline: str, jobs: int) -> None:
    """Run the first experiment of each group, then all others."""
    names = [each.name for group in groups for each in group]
    queue.make_room(names, baseline)
    done = 0

    def finished(name: str) -> None:
        nonlocal done
        done += 1
        print(f"{done} of {len(names)}: {name}", flush=True)

    try:
        for first, *_ in groups:
            queue.queue(first.name, first.arguments)
        queue.wait([first.name for first, *_ in groups], jobs, finished)
        for first, *others in groups:
            with queue.starting_from(queue.reference(baseline, first.name)):
                for each in others:
                    queue.queue(each.name, each.arguments)
        queue.wait([each.name for _, *others in groups for each in others], jobs, finished)
    except BaseException:
        queue.withdraw(names)
        raise


if __name__ == "__main__":
    run_stage(main)
