"""Which projector an edit applies: directions, and what norms between a tensor and the stream make of them, in float64.

The derivations are in docs/edit.md; g is what a chain of norms multiplies by, γ what a reader's norm does. R, the basis
of what is removed, has orthonormal columns.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from excise.checkpoint.weights import read_tensors
from excise.plumbing.files import read_document, unreadable
from schemas.directions import DirectionStatistics, ExpertUse, MeasurementStatistics
from schemas.model import ModelLayout
from schemas.params.ablate import Orthogonalize, ThroughNorm

# Below this share of its length a vector lies in the span of others, and what is left of it is rounding.
_SMALLEST_REST = 1e-6
# An oblique edit adds to what is written at most the product of the two lengths, relative to it. A writer's output
# that grows tenfold drowns the rest of its layer (docs/through_norm.md); of a reader it only multiplies rounding.
_MOST_ADDED_BY_WRITERS = 10.0
_MOST_ADDED_BY_READERS = 1e3


class NoProjector(ValueError):
    """There is no such projector, and why."""


class TooOblique(NoProjector):
    """It would divide by gains too small."""

    def __init__(self, times: float, most: float) -> None:
        super().__init__(f"its norm has weights so small that dividing by them would multiply by {times:.3g}")
        self.times, self.most = times, most


@dataclass(frozen=True, eq=False)
class Projector:
    """I − left rightᵀ, of rank k: `right` reads components, and `left` holds the vectors that are removed in turn.

    Both are ``[hidden, k]`` float64, and rightᵀ left = I. For a tensor that writes to the stream as it is, both are R.
    """

    left: Tensor
    right: Tensor

    @property
    def transposed(self) -> "Projector":
        """What it does to the inputs of a tensor whose weights it is applied to on the side that reads."""
        return Projector(self.right, self.left)

    def to(self, device: torch.device) -> "Projector":
        """The same on a device."""
        return Projector(self.left.to(device), self.right.to(device))

    def remove(self, vectors: Tensor, scale: float = 1.0) -> Tensor:
        """Vectors ``[..., hidden]`` of any float type minus `scale` times their components; computed in float64."""
        exact, here = vectors.double(), self.to(vectors.device)
        return (exact - scale * (exact @ here.right) @ here.left.T).to(vectors.dtype)


@dataclass(frozen=True)
class Directions:
    """The refusal directions as they were measured, ``[measurements, hidden]`` float64 each."""

    unit: Tensor
    """Unit vectors; rows of zeros where there is none."""
    harmless_mean: Tensor
    reasons: tuple[str | None, ...]
    """For each measurement, why it has no direction; None where it has one."""

    def at(self, measurement: float, layer: int, orthogonalize: Orthogonalize) -> Tensor:
        """The unit vector ``[hidden]`` that an edit of `layer` removes. Raises `NoProjector`: nothing is left of it.

        Args:
            measurement: between two whole numbers it stands for the vector between their unit vectors.
            orthogonalize: first make it orthogonal to the harmless mean, `source` the one at the measurement, `target`
                the one entering the layer.
        """
        direction = unit_vector(_between(self.unit, measurement))
        if orthogonalize == "none":
            return direction
        mean = _between(self.harmless_mean, measurement if orthogonalize == "source" else layer)
        if not bool(mean.any()):
            return direction
        try:
            return span(torch.stack([mean, direction], dim=1))[:, 1]
        except NoProjector:
            raise NoProjector(
                f"the direction of measurement {measurement:g} lies along the harmless mean; write "
                "ablate.orthogonalize: none in params.yaml, or name another measurement"
            ) from None

    def of_every_layer(self, measurement: float, orthogonalize: Orthogonalize) -> Tensor:
        """As `at`, of no layer in particular: with `target` it is left as it was measured, for what enters one layer
        is not taken out of it for all."""
        return self.at(measurement, 0, "none" if orthogonalize == "target" else orthogonalize)


def _between(rows: Tensor, place: float) -> Tensor:
    lower = int(place)
    share = place - lower
    return rows[lower] if share == 0 else (1 - share) * rows[lower] + share * rows[lower + 1]


def dot(a: Tensor, b: Tensor) -> float:
    """The inner product of two float64 vectors, summed exactly, on the CPU."""
    return math.fsum((a * b).tolist())


def unit_vector(vector: Tensor) -> Tensor:
    """Scale a vector to length 1 in float64. Its norm is summed exactly, once, on the CPU."""
    exact = vector.double()
    return exact / math.sqrt(dot(exact, exact))


def span(vectors: Tensor) -> Tensor:
    """An orthonormal basis of the columns of ``[hidden, k]``, by Gram and Schmidt, in their order; float64. Raises
    `NoProjector`: a column lies in the span of those before it."""
    return torch.stack([unit_vector(column) for column in _orthogonal(vectors)], dim=1)


def _orthogonal(vectors: Tensor) -> list[Tensor]:
    """The columns, each without its parts along those before it."""
    found: list[Tensor] = []
    for number, vector in enumerate(vectors.double().unbind(dim=1)):
        rest = vector
        for unit in map(unit_vector, found):
            rest = rest - dot(rest, unit) * unit
        if not dot(rest, rest) > _SMALLEST_REST**2 * dot(vector, vector):
            raise NoProjector(f"vector {number} is zero, or lies in the span of those before it")
        found.append(rest)
    return found


def writer_projector(basis: Tensor, gains: Tensor | None, through_norm: ThroughNorm) -> Projector:
    """The edit after which what is added to the stream, behind norms of gains g, has nothing along R. Raises
    `NoProjector`: the norms let nothing of a direction through, or `oblique` would divide by gains too small.

    Args:
        basis: ``[hidden, k]``, R.
        gains: ``[hidden]``, the product of the norms' gains; None where the output is added as it is.
        through_norm: `ignore` projects R itself, as if there were no norm. Of what leaves nothing along R, `orthogonal`
            changes the weights least, and `oblique` takes exactly R out of what is added.
    """
    if gains is None or through_norm == "ignore":
        return Projector(basis, basis)
    if through_norm == "oblique":
        return _oblique(gains, basis, _MOST_ADDED_BY_WRITERS, "leave this writer out")
    normals = span(_passing(gains[:, None] * basis, "leave this writer out"))
    return Projector(normals, normals)


def reader_projector(basis: Tensor, gains: Tensor | None, bias: Tensor | None, centred: bool) -> Projector:
    """The edit that blinds a reader of γ ⊙ h / rms(h) to R in h, and to nothing else. Raises `NoProjector`: the norm
    lets nothing of a direction through, or hardly tells it apart.

    A LayerNorm (`centred`) sees only what differs from the mean. Its bias β is not a part of h: `left` is then chosen,
    among all that read R alike, so that it reads nothing of β.

    Args:
        basis: ``[hidden, k]``, R.
        gains: ``[hidden]``, γ; None where there is no norm.
        bias: ``[hidden]``, β of a LayerNorm; None where it has none.
    """
    instead = "leave this reader out"
    if gains is None:
        return Projector(basis, basis)
    if not centred:
        return _oblique(gains, basis, _MOST_ADDED_BY_READERS, instead)
    if bool((gains == 0).any()):
        raise NoProjector(f"its LayerNorm has weights of zero; {instead}")
    centre = [column - math.fsum(column.tolist()) / len(column) for column in basis.unbind(dim=1)]
    seen = _orthogonal(_passing(torch.stack(centre, dim=1), instead))
    reads = [column / gains / dot(column, column) for column in seen]
    if bias is not None and bool(bias.any()):
        free = 1 / gains  # reads nothing of what is centred
        if dot(free, bias) == 0:
            raise NoProjector(f"its LayerNorm's bias cannot be told from the stream; {instead}")
        reads = [column - free * (dot(column, bias) / dot(free, bias)) for column in reads]
    return _checked(torch.stack(reads, dim=1), gains[:, None] * torch.stack(seen, dim=1), _MOST_ADDED_BY_READERS)


def _oblique(gains: Tensor, basis: Tensor, most: float, instead: str) -> Projector:
    """`right` = g ⊙ R and `left` = R ⊘ g on the channels that g lets through."""
    through = span(_passing(torch.where(gains[:, None] != 0, basis, 0.0), instead))
    safe = torch.where(gains != 0, gains, 1.0)[:, None]
    return _checked(through / safe, through * safe, most)


def _passing(vectors: Tensor, instead: str) -> Tensor:
    """The columns, none of which may be zero."""
    if not bool(vectors.any(dim=0).all()):
        raise NoProjector(f"its norm lets nothing of the direction through; {instead}")
    return vectors


def _checked(left: Tensor, right: Tensor, most: float) -> Projector:
    for reader, writer in zip(left.unbind(dim=1), right.unbind(dim=1), strict=True):
        if not (times := math.sqrt(dot(reader, reader) * dot(writer, writer))) < most:
            raise TooOblique(times, most)
    return Projector(left, right)


_OTHER = "is of another model"


def read_directions(folder: Path, layout: ModelLayout) -> tuple[list[MeasurementStatistics], Directions]:
    """The statistics of each measurement, and the directions with the harmless means. Raises `StageError`: they are not
    whole, or not of this model."""
    path = folder / "directions.json"
    statistics = read_document(DirectionStatistics, path).measurements
    if [row.measurement for row in statistics] != [*range(layout.layers + 1)]:
        raise unreadable(path, _OTHER)
    path, size = folder / "directions.safetensors", ("float64", (layout.layers + 1, layout.hidden_size))
    stored = read_tensors(path, {"directions": size, "harmless_mean": size})
    for row in statistics:
        if row.reason is None and not bool(stored["directions"][row.measurement].isfinite().all()):
            raise unreadable(path, f"holds NaN or infinity in the direction of measurement {row.measurement}")
    return statistics, Directions(
        stored["directions"], stored["harmless_mean"], tuple(row.reason for row in statistics)
    )


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
