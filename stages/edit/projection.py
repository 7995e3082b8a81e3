"""The edit itself: W - s r (r' W), the same bytes for any thread count, instruction set and device.

Only elementwise float64 operations are used, each rounded for itself. A matrix product, `sum`, `addr_` or `addcmul`
adds in an order, or fuses, as the machine likes.
"""

import math

import torch
from torch import Tensor

# Rows that are folded at once: a function of the shape alone, because it decides the order of additions.
_ELEMENTS_A_BLOCK = 1 << 18


def unit_vector(vector: Tensor) -> Tensor:
    """Scale a vector to length 1 in float64. Its norm is summed exactly, once, on the CPU."""
    numbers = vector.double().tolist()
    return vector.double() / math.sqrt(math.fsum(number * number for number in numbers))


def project(weight: Tensor, direction: Tensor, scale: float) -> Tensor:
    """Take `scale` times the component along a direction out of what a tensor writes.

    Args:
        weight: ``[out, in]``, or a bias ``[out]``; any float type.
        direction: ``[out]`` float64, a unit vector, on the same device.
        scale: 1 takes all of it out; 0 gives the weight itself.

    Returns:
        A new tensor of the same shape and type, rounded from float64 to float32 to that type, to nearest even.
        It is not finite where the weight is not.
    """
    if scale == 0:
        return weight.clone()
    matrix = weight.reshape(weight.shape[0], -1)
    rows = max(1, _ELEMENTS_A_BLOCK // max(1, matrix.shape[1]))
    blocks = range(0, matrix.shape[0], rows)

    written = torch.zeros(matrix.shape[1], dtype=torch.float64, device=weight.device)
    for top in blocks:
        block = matrix[top : top + rows].to(torch.float64, copy=True)
        written = written + _fold(block.mul_(direction[top : top + rows, None]))
    written = written * scale

    projected = torch.empty_like(matrix)
    for top in blocks:
        taken = direction[top : top + rows, None] * written
        exact = matrix[top : top + rows].double() - taken
        projected[top : top + rows] = exact if weight.dtype == torch.float64 else exact.float().to(weight.dtype)
    return projected.view(weight.shape)


def _fold(block: Tensor) -> Tensor:
    """Sum over rows, ``[rows, in]`` to ``[in]``: the lower half is added to the upper until one row is left."""
    while block.shape[0] > 1:
        half = (block.shape[0] + 1) // 2
        block[: block.shape[0] - half].add_(block[half:])
        block = block[:half]
    return block[0]
