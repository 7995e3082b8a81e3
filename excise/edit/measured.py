"""What the measure stage left, read again and held against the model that is to be edited."""

from pathlib import Path

from excise.edit.projectors import Directions
from excise.plumbing.artifacts import read_document, read_tensors, unreadable
from schemas.directions import DirectionStatistics, ExpertUse, MeasurementStatistics
from schemas.layout import ModelLayout

_OTHER = "is of another model"


def read_directions(folder: Path, layout: ModelLayout) -> tuple[list[MeasurementStatistics], Directions]:
    """The statistics of each measurement, and the directions with the harmless means.

    Raises:
        StageError: they are not whole, or not of this model.
    """
    path = folder / "directions.json"
    statistics = read_document(DirectionStatistics, path).measurements
    if [row.measurement for row in statistics] != [*range(layout.layers + 1)]:
        raise unreadable(path, _OTHER)
    path, size = folder / "directions.safetensors", ("float64", (layout.layers + 1, layout.hidden_size))
    stored = read_tensors(path, {"directions": size, "harmless_mean": size})
    for row in statistics:
        if row.reason is None and not bool(stored["directions"][row.measurement].isfinite().all()):
            raise unreadable(path, f"holds NaN or infinity in the direction of measurement {row.measurement}")
    reasons = tuple(row.reason for row in statistics)
    return statistics, Directions(stored["directions"], stored["harmless_mean"], reasons)


def read_use(folder: Path, layout: ModelLayout) -> ExpertUse:
    """How often each routed expert is used. Raises as `read_directions` does."""
    path = folder / "expert_use.json"
    use = read_document(ExpertUse, path)
    for row in use.layers:
        sides = (row.harmful, use.harmful_prompts), (row.harmless, use.harmless_prompts)
        counted = all(0 <= count <= prompts for counts, prompts in sides for count in counts)
        whole = len(row.harmful) == len(row.harmless) == layout.experts
        if not counted or not whole or not 0 <= row.layer < layout.layers:
            raise unreadable(path, _OTHER)
    return use
