"""Stage report: both models' results and the diagnosis → comparison, gates, and the report for a reader.

Always written, also when a gate fails.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from excise.checkpoint.manifest import read_manifest
from excise.comparison.comparison import changes, compare, measure_both, metric_tree, read_side
from excise.comparison.gates import judge_gates
from excise.plumbing.artifacts import read_document
from excise.plumbing.digests import sha256_of
from excise.plumbing.errors import run_stage
from excise.plumbing.files import write_json, write_text
from excise.report.markdown import render_report
from excise.report.page import render_page
from excise.report.pictures import draw
from schemas.diagnosis import PLOTS, Diagnosis
from schemas.evidence import Comparison, Comparisons, GateVerdicts, TaskChanges
from schemas.model import ModelManifest
from schemas.params.ablate import Ablate
from schemas.params.gates import ReportSettings
from schemas.params.section import read_settings

ARTIFACTS = Path("artifacts")
RESULTS = Path("results")
REPORT = Path("report")
PICTURES = REPORT / "pictures"


@dataclass(frozen=True)
class Report:
    """What a report shows, computed and judged: what `render_page` asks for, but for where it comes from."""

    rows: list[Comparison]
    gates: GateVerdicts
    changes: list[TaskChanges]
    left_out: dict[str, int]
    diagnosis: Diagnosis
    ablate: Ablate
    manifest: ModelManifest
    directions_sha256: str
    pictures: dict[str, str]


def main() -> None:
    """Compare, judge, draw, and write; `python -m excise.gitops.gate` turns the verdict into an exit code."""
    report = read_report()
    write_text(Path("metrics.json"), json.dumps(metric_tree(report.rows), indent=2) + "\n")
    write_json(Path("gates.json"), report.gates)
    write_json(REPORT / "comparison.json", Comparisons(rows=report.rows))
    for name, svg in report.pictures.items():
        write_text(PICTURES / f"{name}.svg", svg)
    for path in PICTURES.glob("*.svg"):  # those of a model that had more to draw; DVC would have removed them
        if path.stem not in report.pictures:
            path.unlink()
    text = render_report(
        report.rows, report.gates, report.left_out, report.diagnosis, report.ablate, report.pictures.keys()
    )
    write_text(REPORT / "report.md", text)
    write_text(REPORT / "report.html", render_page(**vars(report), provenance=None))


def read_report() -> Report:
    """Everything that the stages before this one found, compared, judged and drawn."""
    settings = read_settings(ReportSettings, ARTIFACTS / "params/report.json")
    plots = {name: read_document(PLOTS[name], ARTIFACTS / f"plots/{name}.json") for name in sorted(PLOTS)}
    base, ablated = read_side(RESULTS / "base"), read_side(RESULTS / "ablated")
    measured = measure_both(base, ablated)
    return Report(
        rows=compare(measured),
        gates=judge_gates(settings.gates.root, measured),
        changes=changes(base, ablated),
        left_out=base.results.left_out,
        diagnosis=read_document(Diagnosis, ARTIFACTS / "diagnosis.json"),
        ablate=settings.ablate,
        manifest=read_manifest(),
        directions_sha256=sha256_of(ARTIFACTS / "directions.safetensors"),
        pictures=draw({name: [row.model_dump() for row in rows] for name, rows in plots.items()}),
    )


if __name__ == "__main__":
    run_stage(main)
