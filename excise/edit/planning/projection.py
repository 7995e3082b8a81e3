"""The edit itself: W − s left (rightᵀ W), the same bytes for any thread count, instruction set and device.

Only elementwise float64 operations are used, each rounded for itself. A matrix product, `sum`, `addr_` or `addcmul`
adds in an order, or fuses, as the machine likes.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from excise.edit.planning.projectors import Projector

# Rows that are folded at once: a function of the shape alone, because it decides the order of additions.
_ELEMENTS_A_BLOCK = 1 << 18
# Below this share of its old square a column lay along the direction; what rounding left of it is not scaled up.
_SMALLEST_REMAINDER = 1e-20


def project(
    weight: Tensor,
    projector: Projector,
    scale: float,
    stream_axis: int = 0,
    keep_column_norms: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Remove `scale` times the projector's components from what a tensor writes, or from what it reads: its columns one
    after another, in float64; the result is rounded once.

    Args:
        weight: ``[..., rows, columns]``, or a bias ``[hidden]``; any float type, contiguous. Leading axes are separate
            matrices.
        projector: on the same device as the weight.
        scale: 1 removes all of it; 0 gives the weight itself; 2 writes the opposite; below 0 adds.
        stream_axis: which of the last two axes is the residual stream's: 0 rows, 1 columns.
        keep_column_norms: afterwards give what each unit on the other axis writes the norm that it had.
        out: where the result goes, a new tensor if not given; may be the weight itself.

    Returns a tensor of the same shape and type, rounded to it from float64: by way of float32, to nearest even. It is
    not finite where the weight is not.
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
    """The sum over a tensor's units of the squares of what each writes along a vector ``[hidden]`` float64, on the same
    device; the tensor as `project` takes it. The same number on any machine."""
    shape = (-1, *weight.shape[-2:]) if weight.ndim > 1 else (1, 1, -1)
    written: list[float] = []
    for blocks in map(_Blocks, weight.view(shape)):
        if stream_axis == 0 and weight.ndim > 1:
            written += blocks.columns_total(partial(blocks.along_rows, along)).square_().tolist()
        else:
            for block in blocks.slices:
                written += _fold_rows(blocks.product(blocks.exact(block), along).T).square().tolist()
    return math.fsum(written)


class _Blocks:
    """A matrix in blocks of rows, each brought to float64 in buffers that are made once: new memory for every operation
    would take longer than the operations."""

    def __init__(self, matrix: Tensor) -> None:
        rows = max(1, _ELEMENTS_A_BLOCK // max(1, matrix.shape[1]))
        self.matrix = matrix
        self.slices = [slice(top, min(top + rows, matrix.shape[0])) for top in range(0, matrix.shape[0], rows)]
        self._exact = matrix.new_empty(min(rows, matrix.shape[0]), matrix.shape[1], dtype=torch.float64)
        self._product = torch.empty_like(self._exact)

    def exact(self, block: slice) -> Tensor:
        """The block in float64, to be changed at will until the next one is asked for."""
        return self._exact[: block.stop - block.start].copy_(self.matrix[block])

    def product(self, exact: Tensor, other: Tensor) -> Tensor:
        """The block that was asked for times something, in a buffer of its own."""
        return torch.mul(exact, other, out=self._product[: len(exact)])

    def along_rows(self, vector: Tensor, block: slice) -> Tensor:
        """The block with each row times its number of the vector."""
        return self.exact(block).mul_(vector[block, None])

    def remove(self, exact: Tensor, written: Tensor, left: Tensor) -> None:
        """Subtract from the block the outer product of what is written and `left`, whichever is along the rows."""
        exact.sub_(torch.mul(written, left, out=self._product[: len(exact)]))

    def columns_total(self, of: Callable[[slice], Tensor]) -> Tensor:
        """``[columns]``: the sum over rows of what is made of each block: blocks are added in order, then folded."""
        whole = torch.zeros_like(self._exact)
        for block in self.slices:
            whole[: block.stop - block.start].add_(of(block))
        return _fold_rows(whole)


def _edit_rows(matrix: Tensor, projector: Projector, scale: float, keep_norms: bool, result: Tensor) -> None:
    """``[hidden, units]``: what a unit writes is a column, summed over all blocks."""
    blocks = _Blocks(matrix)
    written: list[Tensor] = []

    def edited(block: slice) -> Tensor:
        exact = blocks.exact(block)
        for column, each in enumerate(written):
            blocks.remove(exact, each, projector.left[block, column, None])
        return exact

    def written_along(right: Tensor) -> Tensor:
        return blocks.columns_total(lambda block: edited(block).mul_(right[block, None])).mul_(scale)

    for right in projector.right.unbind(dim=1):
        written.append(written_along(right))
    factors = None
    if keep_norms:
        old = blocks.columns_total(lambda block: blocks.exact(block).square_())
        factors = _factors(old, blocks.columns_total(lambda block: edited(block).square_()))
    for block in blocks.slices:
        exact = edited(block)
        result[block] = exact if factors is None else exact.mul_(factors)


def _edit_columns(matrix: Tensor, projector: Projector, scale: float, keep_norms: bool, result: Tensor) -> None:
    """``[units, hidden]``: each row for itself."""
    blocks = _Blocks(matrix)
    for block in blocks.slices:
        exact = blocks.exact(block)
        old = _fold_rows(blocks.product(exact, exact).T).clone() if keep_norms else None
        for left, right in zip(projector.left.unbind(dim=1), projector.right.unbind(dim=1), strict=True):
            written = _fold_rows(blocks.product(exact, right).T).mul(scale)
            blocks.remove(exact, written[:, None], left)
        if old is not None:
            exact.mul_(_factors(old, _fold_rows(blocks.product(exact, exact).T))[:, None])
        result[block] = exact


def _fold_rows(block: Tensor) -> Tensor:
    """Sum over the first axis, in place: the lower half is added to the upper until one row is left."""
    while block.shape[0] > 1:
        half = (block.shape[0] + 1) // 2
        block[: block.shape[0] - half].add_(block[half:])
        block = block[:half]
    return block[0]


def _factors(old: Tensor, new: Tensor) -> Tensor:
    """What brings sums of squares back to what they were; 1 where nothing is left to be scaled."""
    ratio = torch.where(new > old * _SMALLEST_REMAINDER, old / new, torch.ones_like(old))
    # numpy's square root is rounded correctly; torch's is the math library's, whose last bit differs between machines.
    return torch.from_numpy(np.sqrt(ratio.cpu().numpy())).to(ratio.device)
