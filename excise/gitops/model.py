"""The edited model of any commit again: `python -m excise.gitops.model COMMIT OUT [--locked]`.

Out of DVC's cache, from its remote, or made anew in a temporary working tree; checked against what the commit recorded.
"""

import argparse
from pathlib import Path

from excise.gitops.git import commit_of
from excise.gitops.models import ORIGINS, bring_back
from excise.gitops.processes import stoppable
from excise.plumbing.errors import run_stage


def main() -> None:
    """Bring it back, and say which of the three it was."""
    parser = argparse.ArgumentParser(
        prog="python -m excise.gitops.model", description="Bring a past edited model back."
    )
    parser.add_argument("commit", help="or a branch or tag, at which `dvc repro` had run")
    parser.add_argument("out", type=Path, help="a folder that is not there yet, or is empty")
    parser.add_argument("--locked", action="store_true", help="if it must be made anew: with that commit's packages")
    asked = parser.parse_args()
    commit = commit_of(Path(), asked.commit)
    with stoppable():
        origin = bring_back(Path(), commit, asked.out, asked.locked, lambda line: print(line, flush=True))
    print(f"{asked.out} is the edited model of {commit[:12]}, {ORIGINS[origin]}; every file is as recorded there")


if __name__ == "__main__":
    run_stage(main)
