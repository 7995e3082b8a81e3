"""What a model keeps of earlier tokens, for several forks of the same prompts."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, LinearAttentionCacheLayerMixin


def repeated(cache: Any, layer: int, times: int, each: bool = False) -> Any:
    """A cache that has so many copies of the rows of one layer, one after the other, or of each row if `each`."""

    def many(value: Tensor) -> Tensor:
        return value.repeat_interleave(times, 0) if each else value.repeat(times, *(1 for _ in value.shape[1:]))

    copied = copy.copy(cache)
    copied.layers = list(cache.layers)
    copied.layers[layer] = _changed(cache.layers[layer], many)
    return copied


def pretended(model: PreTrainedModel, rows: int, before: int, device: torch.device) -> DynamicCache:
    """A cache as if so many rows of so many tokens had passed: what it says of itself makes masks and positions."""
    cache = DynamicCache(config=model.config)
    keys = torch.zeros(rows, 1, before, 1, dtype=model.dtype, device=device)
    for layer in cache.layers:
        if isinstance(layer, DynamicLayer):
            layer.update(keys, keys)
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            layer.has_previous_state = dict.fromkeys(layer.has_previous_state, True)
    return cache


def _changed(layer: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of what is kept of a layer, with other tensors."""

    def other(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: other(inner) for name, inner in value.items()}
        return change(value) if isinstance(value, Tensor) and value.ndim > 1 else value

    copied = copy.copy(layer)
    vars(copied).update({name: other(value) for name, value in vars(layer).items()})
    return copied
