"""Fetch the experiments of a file that other machines ran, and write what they found into its document as tables.

`python -m excise.gitops.experiments.collect FILE`, or `make collect FILE=…`, at the commit that they started from. Those that are not
at the origin are named, one line each; the rest is tabulated all the same.
"""

import argparse
from pathlib import Path

from excise.gitops.experiments import origin, queue
from excise.gitops.experiments.results import PARAMS, check_document, tabulate
from excise.plumbing.errors import StageError, run_stage
from schemas.experiments import load


def main() -> None:
    """Fetch, and write; fails at the end if an experiment is missing."""
    parser = argparse.ArgumentParser(description="Tabulate what experiments on other machines found.")
    parser.add_argument("file", type=Path)
    given = parser.parse_args()
    file, groups = load(given.file, PARAMS)
    check_document(file, given.file)
    baseline = queue.head()
    there = origin.fetch([each.name for group in groups for each in group], baseline)
    if not there:
        raise StageError(
            f"{origin.ORIGIN} has no experiment of {given.file} that started from {baseline[:10]}; "
            "check out the commit that they did start from"
        )
    tabulate(file, given.file, groups, there, reason_it_is_missing)


def reason_it_is_missing(name: str) -> str:
    """All that this machine knows of an experiment that is not at the origin."""
    return f"is not at {origin.ORIGIN}: it failed or did not run yet, as the log of its job says"


if __name__ == "__main__":
    run_stage(main)
