"""Stage report: both models' results and the diagnosis → comparison, gates, report with pictures.

Always written, also when a gate fails.
"""

import json
from pathlib import Path

from schemas.artifacts import Results
from schemas.diagnosis import Diagnosis
from schemas.params import Ablate, Gates, read_section
from stages.base.files import write_json, write_text
from stages.base.stage import run_stage
from stages.evidence.comparison import compare, metric_tree
from stages.evidence.gates import judge_gates
from stages.rendering.markdown import render_report
from stages.rendering.pictures import draw

ARTIFACTS = Path("artifacts")
RESULTS = Path("results")
PICTURES = Path("report/pictures")


def main() -> None:
    """Compare, judge, draw, and write; `python -m stages.gate` turns the verdict into an exit code."""
    gates = read_section(Gates, ARTIFACTS / "params/gates.json")
    ablate = read_section(Ablate, ARTIFACTS / "params/ablate.json")
    diagnosis = Diagnosis.model_validate_json((ARTIFACTS / "diagnosis.json").read_text())
    plots = {path.stem: json.loads(path.read_text()) for path in sorted((ARTIFACTS / "plots").glob("*.json"))}
    base, ablated = (
        Results.model_validate_json((RESULTS / side / "results.json").read_text()) for side in ("base", "ablated")
    )
    rows = compare(base, ablated)
    verdicts = judge_gates(gates.root, rows)
    pictures = draw(plots)

    write_text(Path("metrics.json"), json.dumps(metric_tree(rows), indent=2) + "\n")
    write_json(Path("gates.json"), verdicts)
    for name, svg in pictures.items():
        write_text(PICTURES / f"{name}.svg", svg)
    for path in PICTURES.glob("*.svg"):  # those of a model that had more to draw; DVC would have removed them
        if path.stem not in pictures:
            path.unlink()
    write_text(Path("report/report.md"), render_report(rows, verdicts, diagnosis, ablate, pictures.keys()))


if __name__ == "__main__":
    run_stage(main)
