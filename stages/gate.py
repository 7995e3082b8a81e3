"""The gates as an exit code: prints the table; 1 if one failed. `--show` prints it and leaves the code at 0."""

import sys
from pathlib import Path

from schemas.evidence import GateVerdicts
from stages.base.artifacts import read_document
from stages.base.stage import StageError, run_stage
from stages.rendering.terminal import print_gates

GATES = Path("gates.json")


def main() -> None:
    """Read what the report stage wrote."""
    verdicts = read_document(GateVerdicts, GATES)
    print_gates(verdicts)
    if verdicts.verdict == "fail" and sys.argv[1:] != ["--show"]:
        failed = ", ".join(gate.metric for gate in verdicts.gates if gate.verdict == "fail")
        raise StageError(f"gates failed: {failed}; see report/report.md")


if __name__ == "__main__":
    run_stage(main)
