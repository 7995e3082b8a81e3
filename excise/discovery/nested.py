"""Tensors inside of the arguments and results of modules: tuples, lists, mappings, and transformers' outputs."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

Path = tuple[int | str, ...]
"""Keys and indices that lead to a tensor."""


def tensors(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor with the path that leads to it."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):  # outputs of transformers are
        for key, inner in value.items():
            yield from tensors(inner, (*path, key))
    elif isinstance(value, tuple | list):
        for index, inner in enumerate(value):
            yield from tensors(inner, (*path, index))


def at(value: Any, path: Path) -> Any:
    """What a path leads to."""
    for key in path:
        value = value[key]
    return value


def replaced(value: Any, path: Path, new: Any) -> Any:
    """The same value with `new` where a path leads; what contains it is copied."""
    if not path:
        return new
    key, rest = path[0], path[1:]
    copied: Any = dict(value) if isinstance(value, Mapping) else list(value)
    copied[key] = replaced(copied[key], rest, new)
    return tuple(copied) if isinstance(value, tuple) else copied
