"""What a model keeps of earlier tokens, for several forks of the same prompts."""

import copy
from typing import Any

from torch import Tensor


def repeated(cache: Any, times: int, each: bool = False, only: int | None = None) -> Any:
    """A copy of a cache with so many copies of its rows, one after the other, or of each row if `each`; `only` of one
    layer, the others are not copied."""
    copied = copy.copy(cache)
    copied.layers = [
        _repeated_layer(layer, times, each) if only is None or number == only else layer
        for number, layer in enumerate(cache.layers)
    ]
    return copied


def _repeated_layer(layer: Any, times: int, each: bool) -> Any:
    def many(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: many(inner) for name, inner in value.items()}
        if isinstance(value, Tensor) and value.ndim > 1:
            return value.repeat_interleave(times, 0) if each else value.repeat(times, *(1 for _ in value.shape[1:]))
        return value

    copied = copy.copy(layer)
    vars(copied).update({name: many(value) for name, value in vars(layer).items()})
    return copied
