"""What to take out of a writer behind norms, and of a reader behind one. Pure maths, float64.

The derivations are in docs/edit.md; g is what a chain of norms multiplies by, γ what a reader's norm does.
"""

import math

import torch
from torch import Tensor

from excise.edit.projection import Pair, dot, unit_vector
from schemas.params.ablate import ThroughNorm

# An oblique edit changes a weight by at most the product of the two lengths, relative to itself.
_LARGEST_AMPLIFICATION = 1e3


class NoPair(ValueError):
    """There is no such edit, and why."""


def writer_pair(direction: Tensor, gains: Tensor | None, through_norm: ThroughNorm) -> Pair:
    """The edit after which what is added to the stream, behind norms of gains g, has nothing along the direction.

    Args:
        direction: ``[hidden]``, a unit vector.
        gains: ``[hidden]``, the product of the norms' gains; None where the output is added as it is.
        through_norm: `orthogonal` changes the weights least, `oblique` takes exactly the direction out of what is
            added, `ignore` projects the direction itself, as if there were no norm.

    Raises:
        NoPair: `oblique` would divide by gains that are too small.
    """
    if gains is None or through_norm == "ignore":
        return Pair(direction, direction)
    if not bool((gains * direction).any()):
        raise NoPair("its norm lets nothing of the direction through")
    if through_norm == "orthogonal":
        normal = unit_vector(gains * direction)
        return Pair(normal, normal)
    return _oblique(gains, direction, "through_norm: orthogonal needs no division")


def reader_pair(direction: Tensor, gains: Tensor | None, bias: Tensor | None, centred: bool) -> Pair:
    """The edit that blinds a reader of γ ⊙ h / rms(h) to one direction of h, and to nothing else.

    A LayerNorm (`centred`) sees only what differs from the mean. Its bias β is no part of h: `right` is then
    chosen, among all that measure the direction alike, so that it measures nothing of β.

    Args:
        direction: ``[hidden]``, a unit vector of the stream.
        gains: ``[hidden]``, γ; None where there is no norm.
        bias: ``[hidden]``, β of a LayerNorm; None where it has none.

    Raises:
        NoPair: the norm lets nothing of the direction through, or hardly tells it apart.
    """
    if gains is None:
        return Pair(direction, direction)
    if not centred:
        return _oblique(gains, direction, "leave this reader out")
    if bool((gains == 0).any()):
        raise NoPair("its LayerNorm has weights of zero; leave this reader out")
    seen = direction - math.fsum(direction.tolist()) / len(direction)
    measures = seen / gains / dot(seen, seen)
    if bias is not None and bool(bias.any()):
        free = 1 / gains  # measures nothing of what is centred
        if dot(free, bias) == 0:
            raise NoPair("its LayerNorm's bias cannot be told from the stream; leave this reader out")
        measures = measures - free * (dot(measures, bias) / dot(free, bias))
    pair = Pair(left=measures, right=gains * seen)
    _check(pair, "leave this reader out")
    return pair


def _oblique(gains: Tensor, direction: Tensor, instead: str) -> Pair:
    """`right` = g ⊙ r and `left` = r ⊘ g on the channels that g lets through."""
    through = torch.where(gains != 0, direction, torch.zeros_like(direction))
    if not bool(through.any()):
        raise NoPair(f"its norm lets nothing of the direction through; {instead}")
    through = unit_vector(through)
    safe = torch.where(gains != 0, gains, torch.ones_like(gains))
    pair = Pair(left=through / safe, right=through * safe)
    _check(pair, instead)
    return pair


def _check(pair: Pair, instead: str) -> None:
    amplification = math.sqrt(dot(pair.left, pair.left) * dot(pair.right, pair.right))
    if not amplification < _LARGEST_AMPLIFICATION:
        raise NoPair(f"its norm has weights so small that dividing by them would multiply errors; {instead}")
