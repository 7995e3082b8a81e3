"""The projector of an edit, from directions and the norms between a tensor and the stream, in float64. docs/edit.md
derives it. g are the gains of a chain of norms, γ those of a reader's norm; R, the basis of what is removed, has
orthonormal columns."""

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

# Below this share of its length, a vector is in the span of others, and the rest is rounding.
_SMALLEST_REST = 1e-6
# An oblique edit adds at most the product of the two lengths, relative to the output. A writer's output that grows
# tenfold drowns the rest of its layer (docs/through_norm.md); a reader only multiplies rounding.
_MOST_ADDED_BY_WRITERS = 10.0
_MOST_ADDED_BY_READERS = 1e3
_REMEDY = "leave this tensor out"
_OTHER = "belongs to another model"


class NoProjector(ValueError):
    """The reason that no projector exists."""


class TooOblique(NoProjector):
    """The projector would divide by gains that are too small."""

    def __init__(self, times: float, most: float) -> None:
        super().__init__(f"its norm has weights so small that dividing by them would multiply by {times:.3g}")
        self.times, self.most = times, most


@dataclass(frozen=True, eq=False)
class Projector:
    """I − left rightᵀ of rank k: `right` reads components, and `left` holds the vectors that are removed. Both are
    ``[hidden, k]`` float64, and rightᵀ left = I. Without norms, both are R."""

    left: Tensor
    right: Tensor

    @property
    def transposed(self) -> "Projector":
        """Its effect on the inputs of a reader to whose weights it is applied."""
        return Projector(self.right, self.left)

    def to(self, device: torch.device) -> "Projector":
        return Projector(self.left.to(device), self.right.to(device))

    def remove(self, vectors: Tensor, scale: float = 1.0) -> Tensor:
        """Vectors ``[..., hidden]`` of any float type minus `scale` times their components; computed in float64."""
        exact, here = vectors.double(), self.to(vectors.device)
        return (exact - scale * (exact @ here.right) @ here.left.T).to(vectors.dtype)


@dataclass(frozen=True)
class Directions:
    """The measured refusal directions, ``[measurements, hidden]`` float64 each."""

    unit: Tensor  # unit vectors; zeros for measurements without a direction
    harmless_mean: Tensor
    reasons: tuple[str | None, ...]  # for each measurement, why it has no direction; None if it has one

    def at(self, measurement: float, layer: int, orthogonalize: Orthogonalize) -> Tensor:
        """The unit vector ``[hidden]`` that an edit of `layer` removes. A fractional measurement interpolates between
        its neighbors' unit vectors. `orthogonalize` makes it orthogonal to the harmless mean: with `source` at the
        measurement, with `target` entering the layer. Raises `NoProjector`: nothing is left."""
        direction = unit_vector(_interpolated(self.unit, measurement))
        if orthogonalize == "none":
            return direction
        mean = _interpolated(self.harmless_mean, measurement if orthogonalize == "source" else layer)
        if not bool(mean.any()):
            return direction
        try:
            return span(torch.stack([mean, direction], dim=1))[:, 1]
        except NoProjector:
            raise NoProjector(
                f"the direction of measurement {measurement:g} is parallel to the harmless mean; write "
                "ablate.orthogonalize: none in params.yaml, or name another measurement"
            ) from None

    def of_every_layer(self, measurement: float, orthogonalize: Orthogonalize) -> Tensor:
        """As `at`, but not orthogonalized with `target`, because each layer has another mean."""
        return self.at(measurement, 0, "none" if orthogonalize == "target" else orthogonalize)


def _interpolated(rows: Tensor, index: float) -> Tensor:
    lower = int(index)
    share = index - lower
    return rows[lower] if share == 0 else (1 - share) * rows[lower] + share * rows[lower + 1]


def dot(a: Tensor, b: Tensor) -> float:
    """The inner product of two float64 vectors, summed exactly, on the CPU."""
    return math.fsum((a * b).tolist())


def unit_vector(vector: Tensor) -> Tensor:
    """The vector scaled to length 1, in float64 on any device; its norm is summed exactly, on the CPU."""
    exact = vector.double()
    return exact / math.sqrt(dot(exact, exact))


def span(vectors: Tensor) -> Tensor:
    """An orthonormal basis of the columns of ``[hidden, k]``. Raises `NoProjector`: they are linearly dependent."""
    return torch.stack([unit_vector(column) for column in _orthogonal(vectors)], dim=1)


def _orthogonal(vectors: Tensor) -> list[Tensor]:
    """The columns, each without its components along those before it."""
    orthogonal: list[Tensor] = []
    for number, vector in enumerate(vectors.double().unbind(dim=1)):
        rest = vector
        for unit in map(unit_vector, orthogonal):
            rest = rest - dot(rest, unit) * unit
        if not dot(rest, rest) > _SMALLEST_REST**2 * dot(vector, vector):
            raise NoProjector(f"vector {number} is zero, or in the span of those before it")
        orthogonal.append(rest)
    return orthogonal


def writer_projector(
    basis: Tensor, gains: Tensor | None, through_norm: ThroughNorm, centered: bool = False
) -> Projector:
    """The projector of a writer, after which its output behind the norms has no component along R, from R
    ``[hidden, k]`` and g ``[hidden]``. `ignore` projects R out, as if there were no norms; `orthogonal` changes the
    weights least; `oblique` removes exactly R from what is added. Raises `NoProjector`: the norms remove a direction
    completely, or `oblique` would divide by gains that are too small. A LayerNorm (`centered`) passes only differences
    from the mean on, and what `oblique` would take from the weights has one."""
    if gains is None or through_norm == "ignore":
        return Projector(basis, basis)
    if centered:
        if through_norm == "oblique":
            raise NoProjector("it is behind a LayerNorm; write through_norm: orthogonal, or leave this tensor out")
        through = gains[:, None] * basis
        means = [math.fsum(column.tolist()) / len(column) for column in through.unbind(dim=1)]
        normals = span(_passing(through - torch.tensor(means, dtype=torch.float64)))
        return Projector(normals, normals)
    if through_norm == "oblique":
        return _oblique(gains, basis, _MOST_ADDED_BY_WRITERS)
    normals = span(_passing(gains[:, None] * basis))
    return Projector(normals, normals)


def reader_projector(basis: Tensor, gains: Tensor | None, bias: Tensor | None, centered: bool) -> Projector:
    """The projector of a reader, which blinds it to R in h behind γ ⊙ h / rms(h), and to nothing else; R is
    ``[hidden, k]``, γ and β ``[hidden]``. A LayerNorm (`centered`) sees only differences from the mean. Its bias β is
    not a part of h, so `left` is chosen, among all vectors that read R alike, to read nothing of β. Raises
    `NoProjector`: the norm removes a direction, or nearly so."""
    if gains is None:
        return Projector(basis, basis)
    if not centered:
        return _oblique(gains, basis, _MOST_ADDED_BY_READERS)
    if bool((gains == 0).any()):
        raise NoProjector(f"its LayerNorm has weights of zero; {_REMEDY}")
    center = [column - math.fsum(column.tolist()) / len(column) for column in basis.unbind(dim=1)]
    visible = _orthogonal(_passing(torch.stack(center, dim=1)))
    reads = [column / gains / dot(column, column) for column in visible]
    if bias is not None and bool(bias.any()):
        blind = 1 / gains  # reads nothing of what is centered
        if dot(blind, bias) == 0:
            raise NoProjector(f"its LayerNorm's bias cannot be separated from the stream; {_REMEDY}")
        reads = [column - blind * (dot(column, bias) / dot(blind, bias)) for column in reads]
    return _checked(torch.stack(reads, dim=1), gains[:, None] * torch.stack(visible, dim=1), _MOST_ADDED_BY_READERS)


def _oblique(gains: Tensor, basis: Tensor, most: float) -> Projector:
    """`right` = g ⊙ R and `left` = R ⊘ g on the channels where g is not 0."""
    through = span(_passing(torch.where(gains[:, None] != 0, basis, 0.0)))
    nonzero = torch.where(gains != 0, gains, 1.0)[:, None]
    return _checked(through / nonzero, through * nonzero, most)


def _passing(vectors: Tensor) -> Tensor:
    """The columns, none of which may be zero."""
    if not bool(vectors.any(dim=0).all()):
        raise NoProjector(f"its norm lets nothing of the direction through; {_REMEDY}")
    return vectors


def _checked(left: Tensor, right: Tensor, most: float) -> Projector:
    for reader, writer in zip(left.unbind(dim=1), right.unbind(dim=1), strict=True):
        if not (times := math.sqrt(dot(reader, reader) * dot(writer, writer))) < most:
            raise TooOblique(times, most)
    return Projector(left, right)


def read_directions(folder: Path, layout: ModelLayout) -> tuple[list[MeasurementStatistics], Directions]:
    """Each measurement's statistics, and the directions. Raises `StageError`: a file is damaged, or another model's."""
    path = folder / "directions.json"
    statistics = read_document(DirectionStatistics, path).measurements
    if [row.measurement for row in statistics] != [*range(layout.layers + 1)]:
        raise unreadable(path, _OTHER)
    path, size = folder / "directions.safetensors", ("float64", (layout.layers + 1, layout.hidden_size))
    unit, harmless_mean = read_tensors(path, {"directions": size, "harmless_mean": size}).values()
    for row in statistics:
        if row.reason is None and not bool(unit[row.measurement].isfinite().all()):
            raise unreadable(path, f"holds NaN or infinity in the direction of measurement {row.measurement}")
    return statistics, Directions(unit, harmless_mean, tuple(row.reason for row in statistics))


def read_use(folder: Path, layout: ModelLayout) -> ExpertUse:
    """How often each routed expert is used. Raises as `read_directions` does."""
    path = folder / "expert_use.json"
    use = read_document(ExpertUse, path)
    for row in use.layers:
        sides = (row.harmful, use.harmful_prompts), (row.harmless, use.harmless_prompts)
        is_counted = all(0 <= count <= prompts for counts, prompts in sides for count in counts)
        is_whole = len(row.harmful) == len(row.harmless) == layout.experts
        if not is_counted or not is_whole or not 0 <= row.layer < layout.layers:
            raise unreadable(path, _OTHER)
    return use
