"""What a writer and a reader are for, by what a write depends on: other tokens, a choice of experts, other inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from excise.discovery.blocks import Block
from excise.discovery.gains import Gain
from excise.discovery.measurement import Measured, Read, Sample, Written, only_vector
from schemas.model import ReaderRole, WriterRole

_DEPENDS = 1e-3
"""Of the largest dependence; what reaches a sublayer through an earlier write of the block is at about 1e-5."""
_INDIRECT = 3e-5
"""What reaches a tensor by later sublayers is at most such a part of a gradient."""
_TOKENS = 4


@dataclass(frozen=True)
class Sources:
    """What one parameter's write to one token's stream depends on."""

    mixes: bool
    """Whether on the streams of other tokens."""
    beside: bool
    """Whether on another input of the block, which depends on weights too."""
    inputs: frozenset[str]
    """Parameters that what is written depends on."""
    factors: frozenset[str]
    """Parameters that it, or only its length, depends on."""


def sources(measured: Measured, written: Written) -> Sources:
    """Differentiate the gradient of what a parameter writes by what it may depend on, for a few tokens: the first of a
    sequence, say, has no others to depend on."""
    found = [_sources_of(measured, written, sample) for sample in measured.strongest(written.name, _TOKENS)]
    return Sources(
        mixes=any(each.mixes for each in found),
        beside=any(each.beside for each in found),
        inputs=frozenset().union(*(each.inputs for each in found)),
        factors=frozenset().union(*(each.factors for each in found)),
    )


def _sources_of(measured: Measured, written: Written, sample: Sample) -> Sources:
    block, parameter = measured.block, measured.parameters[written.name]
    assert block.entered is not None
    along = measured.along(sample.row, sample.direction)
    (gradient,) = torch.autograd.grad(along, parameter, create_graph=True)
    if not gradient.requires_grad:  # it writes the same to every token
        return Sources(False, False, frozenset(), frozenset())
    # The gradient is u xᵀ, where x is what the parameter multiplies. What x depends on is asked for, apart from its
    # length, of each expert if there are several. (Along u: norms that others write through change u a little.)
    vector = only_vector(sample.gradients[written.name], written.axis)
    assert vector is not None
    given = torch.tensordot(vector.to(gradient.dtype), gradient.movedim(written.axis, 0), dims=1)
    parts = given.flatten(0, -2) if given.ndim > 1 else given[None]
    lengths = parts.norm(dim=1)
    # Experts that the token does not use may reach it by a later sublayer.
    used = lengths > _DEPENDS * lengths.max()
    units = parts[used] / lengths[used][:, None]
    others = {other: each for other, each in measured.parameters.items() if other != written.name}
    leaves = [block.entered, *block.beside, *others.values()]
    noise = torch.randn(units.shape, generator=torch.Generator().manual_seed(0), dtype=units.dtype)
    direction, length = (_by(total, leaves) for total in ((units * noise).sum(), lengths[used].log().sum()))
    stream = direction[0]
    rows = torch.zeros(block.rows)
    if stream is not None:
        rows = (stream.reshape(block.rows, -1) * block.received()).norm(dim=1)
    own, rest = float(rows[sample.row]), float(rows.sum() - rows[sample.row])
    inputs = _strong(direction[1:], leaves[1:])
    beside = [each for number, each in enumerate(direction[1 : 1 + len(block.beside)]) if number in inputs]
    names = [*[""] * len(block.beside), *others]
    return Sources(
        mixes=rest > _DEPENDS * max(own, 1.0)
        or any(_elsewhere(each, sample.row, block) for each in beside if each is not None),
        beside=bool(beside),
        inputs=frozenset(names[number] for number in inputs) - {""},
        factors=frozenset(names[number] for number in inputs | _strong(length[1:], leaves[1:])) - {""},
    )


def _by(total: Tensor, leaves: Sequence[Tensor]) -> Sequence[Tensor | None]:
    return torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)


def _strong(gradients: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> set[int]:
    """Those on which something depends, by numbers."""
    strengths = [
        0.0 if gradient is None else float(gradient.norm() * leaf.detach().norm())
        for gradient, leaf in zip(gradients, leaves, strict=True)
    ]
    least = _DEPENDS * max(strengths, default=0.0)
    return {number for number, strength in enumerate(strengths) if strength > least}


def _elsewhere(gradient: Tensor, row: int, block: Block) -> bool:
    """Whether it is of other tokens than this one, where an axis counts the tokens of a sequence."""
    for axis in (axis for axis, size in enumerate(gradient.shape) if size == block.tokens):
        of_token = gradient.movedim(axis, 0).flatten(1).norm(dim=1)
        if float(of_token.sum() - of_token[row % block.tokens]) > _DEPENDS * float(of_token.max()):
            return True
    return False


def is_routed(measured: Measured, name: str) -> bool:
    """Whether each token uses as many parts of a parameter along one axis, its experts, but not all; or, where each
    expert has a parameter of its own, whether only some tokens use it."""
    samples = measured.samples
    if any(name not in sample.gradients for sample in samples):
        return True
    parameter = measured.parameters[name]
    for axis in range(parameter.ndim):
        used = [_used(sample.gradients[name], axis) for sample in samples]
        # Units that happen to be off are not as many for each token.
        is_alike = len({int(parts.sum()) for parts in used}) == 1 and not bool(used[0].all())
        differ = any(not torch.equal(parts, used[0]) for parts in used)
        if is_alike and (differ or (axis == 0 and parameter.ndim > 2)):
            return True
    return False


def _used(gradient: Tensor, axis: int) -> Tensor:
    """``[size]`` bool: which parts along an axis have a gradient."""
    lengths = gradient.movedim(axis, 0).flatten(1).norm(dim=1)
    return lengths > _INDIRECT * lengths.max()


class Roles:
    """The roles of what one block's parameters write and read."""

    def __init__(self, measured: Measured, written: Mapping[str, Written], read: Mapping[str, Read]) -> None:
        self._measured, self._written, self._read = measured, written, read
        weights = {name: each for name, each in written.items() if measured.parameters[name].ndim > 1}
        self._sources = {name: sources(measured, each) for name, each in weights.items()}
        self._routed = {name for name, each in self._sources.items() if not each.mixes and is_routed(measured, name)}
        self._experts = max((measured.parameters[name].shape[0] for name in self._routed), default=0)
        self.writers = {name: self._writer(name) for name in weights}
        self.readers = {name: self._reader(name) for name in read}

    def _writer(self, name: str) -> WriterRole:
        """A bias has the role of the weights of its module, which the caller knows."""
        if self._sources[name].mixes:
            return "attention"
        if name in self._routed:
            return "routed_experts"
        if self._sources[name].beside:
            return "per_layer_input"
        beside = {place for routed in self._routed for place in self._places(routed)}
        return "shared_experts" if beside & self._places(name) else "mlp"

    def _places(self, name: str) -> set[object]:
        """Between which norms a writer's sublayer is."""
        return {
            (self._written[name].chain, self._read[other].gain)
            for other in self._sources[name].inputs
            if other in self._read
        }

    def _gains_of(self, role: WriterRole) -> set[Gain | None]:
        """The norms through which writers of a role read."""
        fed = {name for writer, each in self._sources.items() if self.writers[writer] == role for name in each.inputs}
        return {self._read[name].gain for name in fed if name in self._read}

    def _reader(self, name: str) -> ReaderRole:
        fed = {self.writers[writer] for writer, each in self._sources.items() if name in each.inputs}
        scaled = {self.writers[writer] for writer, each in self._sources.items() if name in each.factors}
        parameter = self._measured.parameters[name]
        rows = parameter.numel() // parameter.shape[self._read[name].axis]
        if "attention" in fed:
            return "attention_inputs"
        if fed & {"routed_experts", "shared_experts"}:
            return "router" if rows in (1, self._experts) else "expert_inputs"
        if fed:
            return "mlp_inputs"
        beside_experts = self._read[name].gain in self._gains_of("routed_experts")
        if scaled & {"routed_experts", "shared_experts"} or (rows == self._experts and beside_experts):
            return "router"
        # What selects tokens has no gradient.
        return "mlp_inputs" if scaled and "attention" not in scaled else "attention_inputs"
