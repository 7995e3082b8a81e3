"""Stage report: both models' results, diagnosis and simulation → comparison, gates and report, even if a gate fails."""

import json
from pathlib import Path

from excise.comparison.comparison import metric_tree
from excise.plumbing.errors import run_stage
from excise.plumbing.files import write_json, write_text
from excise.report.markdown import render_report
from excise.report.page import render_page
from excise.report.reading import read_report
from schemas.evidence import Comparisons

REPORT = Path("report")
PICTURES = REPORT / "pictures"


def main() -> None:
    report = read_report()
    write_text(Path("metrics.json"), json.dumps(metric_tree(report.rows), indent=2) + "\n")
    write_json(Path("gates.json"), report.gates)
    write_json(REPORT / "comparison.json", Comparisons(rows=report.rows))
    for name, svg in report.pictures.items():
        write_text(PICTURES / f"{name}.svg", svg)
    for path in PICTURES.glob("*.svg"):  # of an earlier model that had more pictures
        if path.stem not in report.pictures:
            path.unlink()
    write_text(REPORT / "report.md", render_report(report))
    write_text(REPORT / "report.html", render_page(report, provenance=None))


if __name__ == "__main__":
    run_stage(main)
