"""Chains of norms that may stand between a tensor and the stream, and what each makes of a direction."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

TOLERANCE = 2e-3
"""Of the sine of an angle. Other writes of the block reach a gradient at about 1e-5 of its length."""
_LONGEST = 3
_MOST_OF_THREE = 16


@dataclass(frozen=True)
class Gain:
    """One norm: x / rms(x) ⊙ (offset + weight), or a LayerNorm."""

    weight: str | None
    """Name of the parameter; None for a LayerNorm without one."""
    offset: Literal[0, 1] = 0
    kind: Literal["rms", "layer"] = "rms"


Chain = tuple[Gain, ...]
"""From the tensor to the stream."""


class Chains:
    """All chains that the vectors ``[hidden]`` of a block allow."""

    def __init__(self, vectors: Mapping[str, Tensor], hidden: int) -> None:
        """`vectors`: by name, in the order in which they are used."""
        self._hidden = hidden
        self.chains = _chains(list(vectors))
        steps = [[*reversed(chain), *[None] * (_LONGEST - len(chain))] for chain in self.chains]
        by_step = [*zip(*steps, strict=True)]
        # Each chain as three steps, from the stream inwards; those that a shorter one lacks change nothing.
        self._gains = [torch.stack([self._gain(gain, vectors) for gain in step]) for step in by_step]
        self._centres = [
            torch.tensor([[gain is not None and gain.kind == "layer"] for gain in step]).double() for step in by_step
        ]

    def _gain(self, gain: Gain | None, vectors: Mapping[str, Tensor]) -> Tensor:
        if gain is None or gain.weight is None:
            return torch.ones(self._hidden, dtype=torch.float64)
        return vectors[gain.weight].double() + gain.offset

    def through(self, direction: Tensor) -> Tensor:
        """``[chains, hidden]``: what a tensor must write along, so that `direction` is added to the stream."""
        pulled = direction[None].expand(len(self.chains), -1)
        for gains, centres in zip(self._gains, self._centres, strict=True):
            pulled = pulled * gains
            pulled = pulled - centres * pulled.mean(dim=1, keepdim=True)
        return pulled

    def explaining(self, samples: Sequence[tuple[Tensor, Tensor]]) -> Chain | None:
        """The shortest chain by which every vector ``[hidden]`` is its direction; samples are the vector and
        what `through` makes of the direction."""
        left = torch.zeros(len(self.chains), dtype=torch.float64)
        for vector, pulled in samples:
            left = torch.maximum(left, _sines(pulled, vector))
        explained = torch.nonzero(left <= TOLERANCE).flatten().tolist()
        return min((self.chains[number] for number in explained), key=_complexity, default=None)


def _chains(names: Sequence[str]) -> list[Chain]:
    """In the order of `names` where their order does not matter."""
    gains = [Gain(name, offset, kind) for name in names for kind in ("rms", "layer") for offset in (0, 1)]
    found: list[Chain] = [(), (Gain(None, kind="layer"),), *((gain,) for gain in gains)]
    found += [pair for pair in itertools.permutations(gains, 2) if pair[0].weight != pair[1].weight]
    plain = [gain for gain in gains if gain.kind == "rms"]
    if len(plain) <= _MOST_OF_THREE:
        three = itertools.combinations(plain, 3)
        found += [chain for chain in three if len({gain.weight for gain in chain}) == len(chain)]
    return found


def _complexity(chain: Chain) -> tuple[int, int]:
    return len(chain), sum(gain.kind == "layer" for gain in chain)


def _sines(vectors: Tensor, of: Tensor) -> Tensor:
    """``[n]``: the sine of the angle between each of ``[n, hidden]`` and one vector."""
    unit = of / of.norm()
    along = vectors @ unit
    return (vectors - along[:, None] * unit).norm(dim=1) / vectors.norm(dim=1).clamp_min(1e-300)
