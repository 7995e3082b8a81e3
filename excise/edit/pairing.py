"""From a plan to what is taken out of each tensor: directions, seen through the norms between it and the stream."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from excise.edit.directions import CannotEdit, Measured, edit_direction
from excise.edit.pairs import NoPair, reader_pair, writer_pair
from excise.edit.plan import Edit
from excise.edit.projection import Pair
from excise.plumbing.errors import StageError
from schemas.layout import Norm, Reader, Writer
from schemas.params.ablate import Ablate


def make_pairs(plan: Sequence[Edit], ablate: Ablate, measured: Measured, vector: Callable[[str], Tensor]) -> list[Pair]:
    """The pair of vectors of each edit, in the order of the plan; edits that share one share its tensors.

    Args:
        vector: reads a norm's weight or bias from the checkpoint by name, ``[hidden]``.

    Raises:
        CannotEdit: a tensor cannot be edited so, and which.
    """
    made: dict[tuple[object, ...], Pair] = {}
    pairs = []
    for edit in plan:
        key = (edit.measurement, edit.layer, *_seen_through(edit))
        if key not in made:
            try:
                made[key] = _pair(edit, ablate, measured, vector)
            except NoPair as reason:
                raise CannotEdit(f"{edit.tensor} cannot be edited: {reason}") from None
        pairs.append(made[key])
    return pairs


def _seen_through(edit: Edit) -> tuple[object, ...]:
    if edit.place is None:
        return ()
    return (isinstance(edit.place.part, Writer), edit.place.norms, edit.place.norm_bias)


def _pair(edit: Edit, ablate: Ablate, measured: Measured, vector: Callable[[str], Tensor]) -> Pair:
    direction = edit_direction(measured, edit.measurement, edit.layer or 0, ablate.orthogonalize)
    if edit.place is None:
        return Pair(direction, direction)
    part = edit.place.part
    if isinstance(part, Reader):
        if part.norm is None:
            return Pair(direction, direction)
        bias = vector(edit.place.norm_bias).double() if edit.place.norm_bias is not None else None
        gains = _gains((part.norm,), edit.place.norms, vector)
        return reader_pair(direction, gains, bias, centred=part.norm.kind == "layer")
    return writer_pair(direction, _gains(part.norms, edit.place.norms, vector), ablate.through_norm)


def _gains(norms: Sequence[Norm], names: Sequence[str], vector: Callable[[str], Tensor]) -> Tensor | None:
    """What a chain of norms multiplies by, ``[hidden]`` float64; None for no norm."""
    gains: Tensor | None = None
    for norm, name in zip(norms, names, strict=True):
        factor = vector(name).double() + norm.offset
        gains = factor if gains is None else gains * factor
    if gains is not None and not bool(torch.isfinite(gains).all()):
        raise StageError(f"{' and '.join(names)}: holds NaN or infinity; fetch the checkpoint again")
    return gains
