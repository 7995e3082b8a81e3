"""Which vector an edit takes out: from the measured directions and means to one unit vector an edit."""

from dataclasses import dataclass

from torch import Tensor

from excise.edit.projection import dot, unit_vector
from excise.plumbing.errors import StageError
from schemas.params.ablate import Orthogonalize

# Below this share of its length a direction lies along the mean, and what is left of it is rounding.
_SMALLEST_REST = 1e-6


class CannotEdit(StageError):
    """An edit that this model does not take, though all that was read of it is sound. Where many edits are tried, such
    a one is left out; every other `StageError` ends them."""


@dataclass(frozen=True)
class Measured:
    """What the measure stage left: ``[measurements, hidden]`` float64 each."""

    unit: Tensor
    """Unit directions; rows of zeros where there is none."""
    harmless_mean: Tensor


def edit_direction(measured: Measured, measurement: float, layer: int, orthogonalize: Orthogonalize) -> Tensor:
    """The unit vector ``[hidden]`` that an edit of `layer` takes out.

    Args:
        measurement: between two whole numbers it stands for the vector between their unit vectors.
        orthogonalize: first make it orthogonal to the harmless mean, `source` the one at the measurement, `target` the
            one entering the layer.

    Raises:
        CannotEdit: nothing is left of it.
    """
    direction = unit_vector(_between(measured.unit, measurement))
    if orthogonalize == "none":
        return direction
    mean = _between(measured.harmless_mean, measurement if orthogonalize == "source" else layer)
    if not bool(mean.any()):
        return direction
    mean = unit_vector(mean)
    rest = direction - dot(direction, mean) * mean
    if dot(rest, rest) < _SMALLEST_REST**2:
        raise CannotEdit(
            f"params.yaml: ablate.orthogonalize: the direction of measurement {measurement:g} lies along the harmless "
            "mean; write none, or name another measurement"
        )
    return unit_vector(rest)


def _between(rows: Tensor, place: float) -> Tensor:
    lower = int(place)
    share = place - lower
    return rows[lower] if share == 0 else (1 - share) * rows[lower] + share * rows[lower + 1]
