"""Which parameters of one block write to the stream and read it, by their gradients."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from excise.discovery.blocks import Block
from excise.discovery.directions import basis, orthogonal_to_norms
from excise.discovery.gains import TOLERANCE, Chain, Chains, Gain
from excise.discovery.stream import NoLayout

_FEW_ROWS = 12
"""Tokens whose gradients are taken; of all, where some parameter has none from these."""
_STRONGEST = 8
"""Gradients by which a parameter is judged."""
_NOTHING = 1e-9
_READS = 5e-3
"""The largest part of a reader's gradient outside of what a norm makes of the stream."""


@dataclass(frozen=True)
class Written:
    """A parameter that adds to the stream."""

    name: str
    axis: int
    """Which of its axes is the stream's."""
    chain: Chain


@dataclass(frozen=True)
class Read:
    """A parameter that multiplies the stream, through a norm or as it is."""

    name: str
    axis: int
    gain: Gain | None


@dataclass(frozen=True)
class Sample:
    """Gradients of one token's stream behind a block, along one direction."""

    row: int
    direction: Tensor
    """``[hidden]``, float64."""
    gradients: dict[str, Tensor]
    """Of every parameter that has one, float64, by name."""
    entered: Tensor | None
    """``[rows, hidden]``: of what entered the block; None for the frame."""


class Measured:
    """One block, with gradients of its tokens."""

    def __init__(self, block: Block, parameters: Mapping[str, nn.Parameter], generator: torch.Generator) -> None:
        """`parameters`: its own, by name."""
        self.block = block
        self.parameters = dict(parameters)
        self.samples: list[Sample] = []
        self._generator = generator
        rows = torch.randperm(block.rows, generator=generator).tolist()
        for row in rows[:_FEW_ROWS]:
            self._take(row)
        if self.unreached():
            for row in rows[_FEW_ROWS:]:
                self._take(row)
        used = sorted(self._vectors(), key=self._when)
        self.chains = Chains({name: self.parameters[name].detach().flatten() for name in used}, block.hidden)
        self._pulled = {sample.row: self.chains.through(sample.direction) for sample in self.samples}

    def along(self, row: int, direction: Tensor) -> Tensor:
        """What the block returned for one token along a direction, with its gradient."""
        return (self.block.written()[row].double() * direction).sum()

    def _take(self, row: int) -> None:
        block = self.block
        direction = orthogonal_to_norms(block, row, self._generator)
        leaves = [*self.parameters.values(), *([] if block.entered is None else [block.entered])]
        found = torch.autograd.grad(self.along(row, direction), leaves, retain_graph=True, allow_unused=True)
        gradients = {
            name: gradient.double()
            for name, gradient in zip(self.parameters, found, strict=False)
            if gradient is not None and bool(gradient.count_nonzero())
        }
        for name, gradient in gradients.items():
            if not bool(gradient.isfinite().all()):
                raise NoLayout(f"the gradient of {name} is not finite")
        entered = found[-1].double().reshape(block.rows, block.hidden) if block.entered is not None else None
        self.samples.append(Sample(row, direction, gradients, entered))

    def factor(self) -> float:
        """What the block multiplies the stream by as it passes it on. Raises `NoLayout`: it changes it otherwise."""
        factors: list[float] = []
        left: list[float] = []
        passed: list[float] = []
        for sample in self.samples:
            assert sample.entered is not None
            own = sample.entered[sample.row]
            factor = float(own @ sample.direction)
            left.append(float((own - factor * sample.direction).norm()) / max(abs(factor), _NOTHING))
            others = torch.arange(self.block.rows) != sample.row
            passed.append(float(sample.entered[others].norm()) / max(abs(factor), _NOTHING))
            factors.append(factor)
        # The median: what attention to single tokens adds is not always small.
        if statistics.median(left) > TOLERANCE:
            raise NoLayout(
                "a block multiplies the channels of its stream by different numbers, as a norm or a gain on the stream "
                "itself does"
            )
        if statistics.median(passed) > TOLERANCE:
            raise NoLayout("a block passes the stream of one token on to others")
        return statistics.median(factors)

    def _vectors(self) -> list[str]:
        return [name for name, each in self.parameters.items() if each.numel() == self.block.hidden and each.ndim <= 3]

    def _when(self, name: str) -> int:
        """When a vector, or one plus it, is first used; those that never are come last."""
        vector = self.parameters[name].detach().flatten()
        uses = (
            number
            for number, (gain, _) in enumerate(self.block.gained)
            if torch.equal(gain, vector) or torch.equal(gain, vector + 1)
        )
        return next(uses, len(self.block.gained))

    def unreached(self) -> list[str]:
        """Parameters that no sample has a gradient of."""
        reached = {name for sample in self.samples for name in sample.gradients}
        return [name for name in self.parameters if name not in reached]

    def strongest(self, name: str, most: int = _STRONGEST) -> list[Sample]:
        """Those in which a parameter has its largest gradients."""
        reached = [sample for sample in self.samples if name in sample.gradients]
        return sorted(reached, key=lambda sample: -float(sample.gradients[name].norm()))[:most]

    def writer(self, name: str) -> Written | None:
        """How a parameter writes to the stream; None if it does not."""
        samples = self.strongest(name)
        for axis, size in enumerate(self.parameters[name].shape):
            if size != self.block.hidden or not samples:
                continue
            vectors = [(only_vector(sample.gradients[name], axis), self._pulled[sample.row]) for sample in samples]
            single = [(vector, pulled) for vector, pulled in vectors if vector is not None]
            if len(single) < len(samples):
                continue
            chain = self.chains.explaining(single)
            # A norm's own weight has the gradient of what it multiplies.
            if chain is not None and name not in {gain.weight for gain in chain}:
                return Written(name, axis, chain)
        return None

    def reader(self, name: str, written: Written | None) -> Read | None:
        """How a parameter reads the stream; None if it does not."""
        parameter = self.parameters[name]
        samples = self.strongest(name)
        if parameter.ndim < 2 or self.block.entered is None:
            return None
        found: list[tuple[float, Read]] = []
        for axis, size in enumerate(parameter.shape):
            if size != self.block.hidden or (written is not None and written.axis == axis):
                continue
            inputs = [sample.gradients[name].movedim(axis, 0).flatten(1) for sample in samples]
            if not inputs and (read := self.block.read.get(id(parameter))) is not None:
                inputs = [read.double().T]  # a selection, say, has no gradient
            if inputs:
                found += [(left, Read(name, axis, gain)) for gain, left in self._explained(torch.cat(inputs, dim=1))]
        return min(found, key=lambda one: one[0])[1] if found else None

    def _explained(self, inputs: Tensor) -> list[tuple[Gain | None, float]]:
        """Norms in whose outputs all of ``[hidden, n]`` lie; the simplest has the least number."""
        lengths = inputs.norm(dim=0)
        inputs = inputs[:, lengths > 1e-6 * lengths.max()]
        found = []
        for gain, spanned in self._normed:
            left = float((inputs - spanned @ (spanned.T @ inputs)).norm() / inputs.norm())
            if left < _READS:
                is_layer = gain is not None and gain.kind == "layer"
                found.append((gain, left + 0.1 * (gain is not None) + 0.05 * is_layer))
        return found

    @cached_property
    def _normed(self) -> list[tuple[Gain | None, Tensor]]:
        """Each norm that may stand before a reader, with a basis ``[hidden, rank]`` of what it makes of the stream."""
        stream = self.block.received()
        vectors = {name: self.parameters[name].detach().double().flatten() for name in self._vectors()}
        found = []
        for gain in (None, *(chain[0] for chain in self.chains.chains if len(chain) == 1)):
            is_layer = gain is not None and gain.kind == "layer"
            outputs = stream - stream.mean(dim=1, keepdim=True) if is_layer else stream
            if gain is not None and gain.weight is not None:
                # Each token's length changes nothing in what they span.
                outputs = outputs * (vectors[gain.weight] + gain.offset)
            spanning = [*outputs, *(vectors.values() if is_layer else ())]  # a LayerNorm's bias is one of the vectors
            if len(spanning) >= self.block.hidden - 8:
                raise NoLayout(f"{len(spanning)} tokens and biases are too many for {self.block.hidden} channels")
            found.append((gain, basis(spanning)))
        return found


def only_vector(gradient: Tensor, axis: int) -> Tensor | None:
    """``[hidden]``: the one vector along an axis of which all of a gradient consists; None if there are several."""
    matrix = gradient.movedim(axis, 0).reshape(gradient.shape[axis], -1)
    vector = matrix[:, matrix.norm(dim=0).argmax()]
    for _ in range(3):
        vector = matrix @ (matrix.T @ vector)
        vector = vector / vector.norm()
    left = (matrix - vector[:, None] * (vector @ matrix)).norm() / matrix.norm()
    return vector if left <= TOLERANCE else None
