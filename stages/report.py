"""Stage report: both models' results, diagnosis and simulation → comparison, gates, and the report for a reader.

Always written, also when a gate fails.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from excise.checkpoint.manifest import read_manifest
from excise.comparison.comparison import changes, compare, measure_both, metric_tree
from excise.comparison.gates import judge_gates
from excise.comparison.records import read_side
from excise.plumbing.artifacts import read_document
from excise.plumbing.digests import sha256_of
from excise.plumbing.errors import run_stage
from excise.plumbing.files import write_json, write_text
from excise.report.markdown import render_report
from excise.report.page import render_page
from excise.report.pictures import draw
from schemas.artifacts import ModelManifest
from schemas import diagnosis, simulation
from schemas.diagnosis import Diagnosis
from schemas.evidence import Comparison, Comparisons, GateVerdicts, TaskChanges
from schemas.params import Ablate, Gates, read_section
from schemas.simulation import Simulation

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
    simulation: Simulation
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
        report.rows,
        report.gates,
        report.left_out,
        report.diagnosis,
        report.simulation,
        report.ablate,
        report.pictures.keys(),
    )
    write_text(REPORT / "report.md", text)
    write_text(REPORT / "report.html", render_page(**vars(report), provenance=None))


def read_report() -> Report:
    """Everything that the stages before this one found, compared, judged and drawn."""
    gates = read_section(Gates, ARTIFACTS / "params/gates.json")
    plots = {
        name: read_document(schema, ARTIFACTS / folder / f"{name}.json")
        for folder, of_stage in (("plots", diagnosis.PLOTS), ("simulation", simulation.PLOTS))
        for name, schema in sorted(of_stage.items())
    }
    base, ablated = read_side(RESULTS / "base"), read_side(RESULTS / "ablated")
    measured = measure_both(base, ablated)
    return Report(
        rows=compare(measured),
        gates=judge_gates(gates.root, measured),
        changes=changes(base, ablated),
        left_out=base.results.left_out,
        diagnosis=read_document(Diagnosis, ARTIFACTS / "diagnosis.json"),
        simulation=read_document(Simulation, ARTIFACTS / "simulation.json"),
        ablate=read_section(Ablate, ARTIFACTS / "params/ablate.json"),
        manifest=read_manifest(),
        directions_sha256=sha256_of(ARTIFACTS / "directions.safetensors"),
        pictures=draw({name: [row.model_dump() for row in rows] for name, rows in plots.items()}),
    )


if __name__ == "__main__":
    run_stage(main)
