"""Everything that a report shows, from what earlier stages wrote."""

from pathlib import Path

from excise.comparison.comparison import changes, compare, measure_both, read_side
from excise.comparison.gates import judge_gates
from excise.plumbing.files import read_document
from excise.report.findings import Report
from excise.report.pictures import draw
from excise.report.refusal_words import judge_words, seen_words
from schemas.basis.document import ARTIFACTS, read_settings
from schemas.diagnosis import Diagnosis
from schemas.directions import DirectionStatistics
from schemas.model import LayoutEvidence, ModelManifest
from schemas.params.gates import ReportSettings
from schemas.simulation import Simulation

RESULTS = Path("results")


def read_report() -> Report:
    """Read, compare, judge and draw it. Raises `StageError`: files are missing, damaged, or do not belong together."""
    settings = read_settings(ReportSettings, ARTIFACTS / "params/report.json")
    base, ablated = read_side(RESULTS / "base"), read_side(RESULTS / "ablated")
    measured = measure_both(base, ablated)
    diagnosis = read_document(Diagnosis, ARTIFACTS / "diagnosis.json")
    simulation = read_document(Simulation, ARTIFACTS / "simulation.json")
    words = judge_words(seen_words(diagnosis, base))
    directions = read_document(DirectionStatistics, ARTIFACTS / "directions.json")
    return Report(
        rows=compare(measured),
        gates=judge_gates(settings.gates.root, measured),
        changes=changes(base, ablated),
        left_out=base.results.left_out,
        diagnosis=diagnosis,
        simulation=simulation,
        words=words,
        directions=directions,
        ablate=settings.ablate,
        manifest=read_document(ModelManifest, ARTIFACTS / "model.json"),
        pictures=draw(diagnosis, simulation, directions, explained=words.reason is None),
        proof=read_document(LayoutEvidence, ARTIFACTS / "layout_proof.json").proof,
        drawn=base.results.drawn,
    )
