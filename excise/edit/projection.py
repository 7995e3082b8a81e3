"""The edit itself: W - s l (r' W), the same bytes for any thread count, instruction set and device.

Only elementwise float64 operations are used, each rounded for itself. A matrix product, `sum`, `addr_` or `addcmul`
adds in an order, or fuses, as the machine likes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Rows that are folded at once: a function of the shape alone, because it decides the order of additions.
_ELEMENTS_A_BLOCK = 1 << 18
# Below this share of its old square a column lay along the direction; what rounding left of it is not scaled up.
_SMALLEST_REMAINDER = 1e-20


@dataclass(frozen=True)
class Pair:
    """What is taken out: `right` measures it, `left` is what it is replaced by nothing of; right · left = 1.

    Both are ``[hidden]`` float64. For a tensor that writes to the stream as it is, both are the direction.
    """

    left: Tensor
    right: Tensor


def dot(a: Tensor, b: Tensor) -> float:
    """The inner product of two float64 vectors, summed exactly, on the CPU."""
    return math.fsum((a * b).tolist())


def unit_vector(vector: Tensor) -> Tensor:
    """Scale a vector to length 1 in float64. Its norm is summed exactly, once, on the CPU."""
    exact = vector.double()
    return exact / math.sqrt(dot(exact, exact))


def project(
    weight: Tensor,
    pair: Pair,
    scale: float,
    stream_axis: int = 0,
    keep_column_norms: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Take `scale` times what `pair` measures out of what a tensor writes, or of what it reads.

    Args:
        weight: ``[..., rows, columns]``, or a bias ``[hidden]``; any float type, contiguous. Leading axes are separate
            matrices.
        pair: on the same device as the weight.
        scale: 1 takes all of it out; 0 gives the weight itself; 2 writes the opposite; below 0 adds.
        stream_axis: which of the last two axes is the residual stream's: 0 rows, 1 columns.
        keep_column_norms: afterwards give what each unit on the other axis writes the norm that it had.
        out: where the result goes, a new tensor if not given; may be the weight itself.

    Returns:
        A tensor of the same shape and type, rounded to it from float64: by way of float32, to nearest even.
        It is not finite where the weight is not.
    """
    result = torch.empty_like(weight) if out is None else out
    if scale == 0:
        return result.copy_(weight)
    edit = _edit_rows if stream_axis == 0 and weight.ndim > 1 else _edit_columns
    shape = (-1, *weight.shape[-2:]) if weight.ndim > 1 else (1, 1, -1)
    for matrix, edited in zip(weight.view(shape), result.view(shape), strict=True):
        edit(matrix, pair, scale, keep_column_norms, edited)
    return result


class _Blocks:
    """A matrix in blocks of rows, each brought to float64 in buffers that are made once: new memory for every operation
    would take longer than the operations."""

    def __init__(self, matrix: Tensor) -> None:
        rows = max(1, _ELEMENTS_A_BLOCK // max(1, matrix.shape[1]))
        self.matrix = matrix
        self.slices = [slice(top, min(top + rows, matrix.shape[0])) for top in range(0, matrix.shape[0], rows)]
        self._exact = matrix.new_empty(min(rows, matrix.shape[0]), matrix.shape[1], dtype=torch.float64)
        self._taken = torch.empty_like(self._exact)

    def exact(self, block: slice) -> Tensor:
        """The block in float64, to be changed at will until the next one is asked for."""
        return self._exact[: block.stop - block.start].copy_(self.matrix[block])

    def without(self, block: slice, written: Tensor, left: Tensor) -> Tensor:
        """The block minus the outer product of what is written and `left`, whichever is along the rows."""
        exact = self.exact(block)
        return exact.sub_(torch.mul(written, left, out=self._taken[: len(exact)]))

    def product(self, block: slice, vector: Tensor) -> Tensor:
        """The block times a vector along the rows or the columns."""
        exact = self.exact(block)
        return torch.mul(exact, vector, out=self._taken[: len(exact)])

    def columns_total(self, of: Callable[[slice], Tensor]) -> Tensor:
        """``[columns]``: the sum over rows of what is made of each block: blocks are added in order, then folded."""
        whole = torch.zeros_like(self._exact)
        for block in self.slices:
            whole[: block.stop - block.start].add_(of(block))
        return _fold_rows(whole)


def _edit_rows(matrix: Tensor, pair: Pair, scale: float, keep_norms: bool, result: Tensor) -> None:
    """``[hidden, units]``: what a unit writes is a column, summed over all blocks."""
    blocks = _Blocks(matrix)
    left, right = pair.left[:, None], pair.right[:, None]
    written = blocks.columns_total(lambda block: blocks.product(block, right[block])).mul_(scale)
    factors = None
    if keep_norms:
        old = blocks.columns_total(lambda block: blocks.exact(block).square_())
        new = blocks.columns_total(lambda block: blocks.without(block, written, left[block]).square_())
        factors = _factors(old, new)
    for block in blocks.slices:
        edited = blocks.without(block, written, left[block])
        result[block] = edited if factors is None else edited.mul_(factors)


def _edit_columns(matrix: Tensor, pair: Pair, scale: float, keep_norms: bool, result: Tensor) -> None:
    """``[units, hidden]``: each row for itself."""
    blocks = _Blocks(matrix)
    for block in blocks.slices:
        written = _fold_columns(blocks.product(block, pair.right)).mul(scale)[:, None]
        factors = None
        if keep_norms:
            old = _fold_columns(blocks.exact(block).square_()).clone()
            factors = _factors(old, _fold_columns(blocks.without(block, written, pair.left).square_()))[:, None]
        edited = blocks.without(block, written, pair.left)
        result[block] = edited if factors is None else edited.mul_(factors)


def _fold_rows(block: Tensor) -> Tensor:
    """Sum over the first axis, in place: the lower half is added to the upper until one row is left."""
    while block.shape[0] > 1:
        half = (block.shape[0] + 1) // 2
        block[: block.shape[0] - half].add_(block[half:])
        block = block[:half]
    return block[0]


def _fold_columns(block: Tensor) -> Tensor:
    """Sum over the last axis, likewise."""
    while block.shape[1] > 1:
        half = (block.shape[1] + 1) // 2
        block[:, : block.shape[1] - half].add_(block[:, half:])
        block = block[:, :half]
    return block[:, 0]


def _factors(old: Tensor, new: Tensor) -> Tensor:
    """What brings sums of squares back to what they were; 1 where nothing is left to be scaled."""
    ratio = torch.where(new > old * _SMALLEST_REMAINDER, old / new, torch.ones_like(old))
    # numpy's square root is rounded correctly; torch's is the math library's, whose last bit differs between machines.
    return torch.from_numpy(np.sqrt(ratio.cpu().numpy())).to(ratio.device)
