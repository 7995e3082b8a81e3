"""What a model keeps of earlier tokens, for several forks of the same prompts."""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor


def repeated(cache: Any, layer: int, times: int, each: bool = False) -> Any:
    """A cache that has so many copies of the rows of one layer, one after the other, or of each row if `each`."""

    def many(value: Tensor) -> Tensor:
        return value.repeat_interleave(times, 0) if each else value.repeat(times, *(1 for _ in value.shape[1:]))

    copied = copy.copy(cache)
    copied.layers = list(cache.layers)
    copied.layers[layer] = _changed(cache.layers[layer], many)
    return copied


def stretched(cache: Any, rows: int) -> Any:
    """A cache as large as one of so many rows, of which all are the first: its sizes make masks and positions."""
    copied = copy.copy(cache)
    copied.layers = [
        _changed(layer, lambda value: value[:1].expand(rows, *(-1 for _ in value.shape[1:]))) for layer in cache.layers
    ]
    return copied


def _changed(layer: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of what is kept of a layer, with other tensors."""

    def other(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: other(inner) for name, inner in value.items()}
        return change(value) if isinstance(value, Tensor) and value.ndim > 1 else value

    copied = copy.copy(layer)
    vars(copied).update({name: other(value) for name, value in vars(layer).items()})
    return copied
