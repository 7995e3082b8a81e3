"""The gates as an exit code: prints the table; 1 if one failed. `--show` prints it and leaves the code at 0.

Gates of another model than the one that params.yaml and the code describe are not shown: the code is 1, too.
"""

import sys
from pathlib import Path

from excise.gitops.ran import check_ran
from excise.gitops.sides import WorkingTree
from excise.plumbing.artifacts import read_document
from excise.plumbing.errors import StageError, run_stage
from excise.report.terminal import print_gates
from schemas.evidence import GateVerdicts

GATES = Path("gates.json")


def main() -> None:
    """Read what the report stage wrote."""
    check_ran(WorkingTree(Path()))
    verdicts = read_document(GateVerdicts, GATES)
    print_gates(verdicts)
    if verdicts.verdict == "fail" and sys.argv[1:] != ["--show"]:
        failed = ", ".join(gate.metric for gate in verdicts.gates if gate.verdict == "fail")
        raise StageError(f"gates failed: {failed}; see report/report.md")


if __name__ == "__main__":
    run_stage(main)
