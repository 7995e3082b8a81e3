"""Stage report: both models' results → comparison, gates, report. Always written, also when a gate fails."""

import json
from pathlib import Path

from schemas.artifacts import Results
from schemas.params import Gates, read_section
from stages.base.files import write_json, write_text
from stages.base.stage import run_stage
from stages.evidence.comparison import compare, metric_tree
from stages.evidence.gates import judge_gates
from stages.rendering.markdown import render_report

RESULTS = Path("results")


def main() -> None:
    """Compare, judge, and write; `python -m stages.gate` turns the verdict into an exit code."""
    gates = read_section(Gates, Path("artifacts/params/gates.json"))
    base, ablated = (
        Results.model_validate_json((RESULTS / side / "results.json").read_text()) for side in ("base", "ablated")
    )
    rows = compare(base, ablated)
    verdicts = judge_gates(gates.root, rows)

    write_text(Path("metrics.json"), json.dumps(metric_tree(rows), indent=2) + "\n")
    write_json(Path("gates.json"), verdicts)
    write_text(Path("report/report.md"), render_report(rows, verdicts))


if __name__ == "__main__":
    run_stage(main)
