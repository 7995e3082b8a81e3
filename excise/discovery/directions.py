"""Directions along which a block's gradients tell who writes: orthogonal to all that a norm could mix in.

Let y be what a tensor writes, and v a direction. Through a norm, y adds g ⊙ y / rms(y) to the stream. The gradient of
v · (g ⊙ y / rms(y)) by y is that of a constant gain, g ⊙ v / rms(y), if v is orthogonal to the norm's output. If a norm
of gain g₂ follows, v must also be orthogonal to g₂ ⊙ (the first one's output)."""

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor

from excise.discovery.blocks import Block
from excise.discovery.stream import NoLayout

_FEWEST_LEFT = 8
"""Dimensions that directions may be drawn from."""


def orthogonal_to_norms(block: Block, row: int, generator: torch.Generator) -> Tensor:
    """A random direction ``[hidden]``, float64, for one token. Raises `NoLayout`: the block leaves none."""
    outputs = [(gain.double(), made[row].double()) for gain, made in block.gained]
    # Later gains of what earlier ones made.
    twice = [other * made for (_, made), (other, _) in itertools.combinations(outputs, 2)]
    needed = [block.written()[row].detach().double(), *(made for _, made in outputs)]
    if block.entered is not None:
        needed.append(block.received()[row])
    everything = [*needed, *(rows[row].double() for rows in block.between)]
    for vectors in ([*everything, *twice], [*needed, *twice], needed):
        taken = basis(vectors)
        if block.hidden - taken.shape[1] >= _FEWEST_LEFT:
            break
    else:
        raise NoLayout(f"a block computes {taken.shape[1]} independent vectors of {block.hidden} for each token")
    direction = torch.randn(block.hidden, generator=generator, dtype=torch.float64)
    for _ in range(2):  # once more for what rounding left
        direction = direction - taken @ (taken.T @ direction)
    return direction / direction.norm()


def basis(vectors: Iterable[Tensor]) -> Tensor:
    """``[hidden, rank]``: an orthonormal basis of their span."""
    lengths = [(vector, float(vector.norm())) for vector in vectors]
    matrix = torch.stack([vector / length for vector, length in lengths if 0 < length < float("inf")], dim=1)
    left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, values > 1e-9 * values[0]]
