"""What a run hands on: `python -m excise.gitops.hand_over FOLDER` copies what is committed, and the page, to a new one."""

import sys
from pathlib import Path

from excise.gitops.handover import hand_over
from excise.plumbing.errors import StageError, run_stage


def main() -> None:
    """Copy it, and say what it is."""
    if len(sys.argv) != 2:
        raise StageError("name one folder, a new one")
    for path in hand_over(Path(), Path(sys.argv[1])):
        print(path)


if __name__ == "__main__":
    run_stage(main)
