"""What a report shows: everything that the stages before `report` left, compared, judged and drawn."""

from pathlib import Path

from excise.comparison.comparison import changes, compare, measure_both, read_side
from excise.comparison.gates import judge_gates
from excise.plumbing.files import read_document, sha256_of
from excise.report.findings import Report
from excise.report.pictures import draw
from schemas import diagnosis, simulation
from schemas.basis.document import read_settings
from schemas.diagnosis import Diagnosis
from schemas.model import ModelManifest
from schemas.params.gates import ReportSettings
from schemas.simulation import Simulation

ARTIFACTS = Path("artifacts")
RESULTS = Path("results")


def read_report() -> Report:
    """Read, compare, judge and draw it. Raises `StageError`: something is missing or not whole, or the two sides do not
    belong together."""
    settings = read_settings(ReportSettings, ARTIFACTS / "params/report.json")
    plots = {
        name: read_document(schema, ARTIFACTS / folder / f"{name}.json")
        for folder, of_stage in (("plots", diagnosis.PLOTS), ("simulation", simulation.PLOTS))
        for name, schema in sorted(of_stage.items())
    }
    base, ablated = read_side(RESULTS / "base"), read_side(RESULTS / "ablated")
    measured = measure_both(base, ablated)
    return Report(
        rows=compare(measured),
        gates=judge_gates(settings.gates.root, measured),
        changes=changes(base, ablated),
        left_out=base.results.left_out,
        diagnosis=read_document(Diagnosis, ARTIFACTS / "diagnosis.json"),
        simulation=read_document(Simulation, ARTIFACTS / "simulation.json"),
        ablate=settings.ablate,
        manifest=read_document(ModelManifest, ARTIFACTS / "model.json"),
        directions_sha256=sha256_of(ARTIFACTS / "directions.safetensors"),
        pictures=draw({name: [row.model_dump() for row in rows] for name, rows in plots.items()}),
    )
