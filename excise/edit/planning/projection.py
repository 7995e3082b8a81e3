"""The arithmetic of an edit: W − s left (rightᵀ W), with the same bytes for any thread count, instruction set and
device. It uses only elementwise float64 operations, each rounded separately: for matrix products, `sum`, `addr_` and
`addcmul`, the order of additions and fused operations depend on the machine."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from excise.edit.planning.projectors import Projector

# Rows that are folded at once depend only on the shape, because they determine the order of additions.
_ELEMENTS_A_BLOCK = 1 << 18
# Below this share of its old square, a column was parallel to the direction, and the rest is rounding: not scaled up.
_SMALLEST_REMAINDER = 1e-20


def project(
    weight: Tensor,
    projector: Projector,
    scale: float,
    stream_axis: int = 0,
    keep_column_norms: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Remove `scale` times the projector's components, one after another, from what a tensor writes or reads, in
    float64. Returns `out` (may be the weight itself) or a new tensor, rounded once, by way of float32, to nearest even.

    Args:
        weight: ``[..., rows, columns]`` of separate matrices, or a bias ``[hidden]``; any float type, contiguous.
        projector: on the same device as the weight.
        scale: 1 removes the component; 0 keeps the weight; 2 writes the opposite; below 0 adds.
        stream_axis: which of the last two axes is the residual stream's: 0 rows, 1 columns.
        keep_column_norms: restore the norm of what each unit on the other axis writes.
    """
    result = torch.empty_like(weight) if out is None else out
    if scale == 0:
        return result.copy_(weight)
    edit = _edit_rows if stream_axis == 0 and weight.ndim > 1 else _edit_columns
    shape = (-1, *weight.shape[-2:]) if weight.ndim > 1 else (1, 1, -1)
    for matrix, edited in zip(weight.view(shape), result.view(shape), strict=True):
        edit(matrix, projector, scale, keep_column_norms, edited)
    return result


def written_square(weight: Tensor, along: Tensor, stream_axis: int = 0) -> float:
    """The sum over a tensor's units of the squares of what each writes along a vector ``[hidden]`` float64."""
    shape = (-1, *weight.shape[-2:]) if weight.ndim > 1 else (1, 1, -1)
    squares: list[float] = []
    for blocks in map(_Blocks, weight.view(shape)):
        if stream_axis == 0 and weight.ndim > 1:
            squares += blocks.columns_total(blocks.exact, along).square_().tolist()
        else:
            for block in blocks.slices:
                squares += _fold_rows(blocks.product(blocks.exact(block), along).T).square().tolist()
    return math.fsum(squares)


class _Blocks:
    """A matrix in blocks of rows, converted to float64 in buffers that are made once, because allocating is slow."""

    def __init__(self, matrix: Tensor) -> None:
        rows = max(1, _ELEMENTS_A_BLOCK // max(1, matrix.shape[1]))
        self.matrix = matrix
        self.slices = [slice(top, min(top + rows, matrix.shape[0])) for top in range(0, matrix.shape[0], rows)]
        self._exact = matrix.new_empty(min(rows, matrix.shape[0]), matrix.shape[1], dtype=torch.float64)
        self._product = torch.empty_like(self._exact)

    def exact(self, block: slice) -> Tensor:
        """The block in float64, in a buffer that the next call reuses."""
        return self._exact[: block.stop - block.start].copy_(self.matrix[block])

    def product(self, exact: Tensor, other: Tensor) -> Tensor:
        """The product, in a second buffer that the next call reuses."""
        return torch.mul(exact, other, out=self._product[: len(exact)])

    def columns_total(self, of: Callable[[slice], Tensor], along: Tensor | None = None) -> Tensor:
        """``[columns]``: the sum over rows, each times its element of `along`, of what `of` makes of each block."""
        whole = torch.zeros_like(self._exact)
        for block in self.slices:
            rows = of(block) if along is None else of(block).mul_(along[block, None])
            whole[: block.stop - block.start].add_(rows)
        return _fold_rows(whole)


def _edit_rows(matrix: Tensor, projector: Projector, scale: float, keep_norms: bool, result: Tensor) -> None:
    """``[hidden, units]``: a unit writes a column, which spans all blocks."""
    blocks = _Blocks(matrix)
    components: list[Tensor] = []

    def edited(block: slice) -> Tensor:
        exact = blocks.exact(block)
        for column, component in enumerate(components):
            exact.sub_(blocks.product(projector.left[block, column, None], component))
        return exact

    for right in projector.right.unbind(dim=1):
        components.append(blocks.columns_total(edited, right).mul_(scale))
    factors = None
    if keep_norms:
        old = blocks.columns_total(lambda block: blocks.exact(block).square_())
        factors = _factors(old, blocks.columns_total(lambda block: edited(block).square_()))
    for block in blocks.slices:
        exact = edited(block)
        result[block] = exact if factors is None else exact.mul_(factors)


def _edit_columns(matrix: Tensor, projector: Projector, scale: float, keep_norms: bool, result: Tensor) -> None:
    """``[units, hidden]``: a unit writes a row."""
    blocks = _Blocks(matrix)
    for block in blocks.slices:
        exact = blocks.exact(block)
        old = _fold_rows(blocks.product(exact, exact).T).clone() if keep_norms else None
        for left, right in zip(projector.left.unbind(dim=1), projector.right.unbind(dim=1), strict=True):
            component = _fold_rows(blocks.product(exact, right).T).mul(scale)
            exact.sub_(blocks.product(component[:, None], left))
        if old is not None:
            exact.mul_(_factors(old, _fold_rows(blocks.product(exact, exact).T))[:, None])
        result[block] = exact


def _fold_rows(block: Tensor) -> Tensor:
    """Sum over the first axis, in place: add the lower half to the upper until one row is left."""
    while block.shape[0] > 1:
        half = (block.shape[0] + 1) // 2
        block[: block.shape[0] - half].add_(block[half:])
        block = block[:half]
    return block[0]


def _factors(old: Tensor, new: Tensor) -> Tensor:
    """Factors that restore the old sums of squares; 1 if nothing is left to scale."""
    ratio = torch.where(new > old * _SMALLEST_REMAINDER, old / new, torch.ones_like(old))
    # numpy's square root is rounded correctly; the last bit of torch's depends on the machine's math library.
    return torch.from_numpy(np.sqrt(ratio.cpu().numpy())).to(ratio.device)
