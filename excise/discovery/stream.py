"""The residual stream: which modules of a model are its blocks, and what flows from one to the next."""

import itertools
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from excise.discovery.nested import Path, tensors
from schemas.basis.text import shorten


class NoLayout(Exception):
    """The layout of this model cannot be found; the message is the measured reason."""


@dataclass(frozen=True)
class Stream:
    """Where the residual stream is."""

    name: str
    """Of the container of the blocks, within the model."""
    blocks: tuple[nn.Module, ...]
    entries: tuple[Path, ...]
    """By block, where the stream is in `(args, kwargs)`."""
    exits: tuple[Path, ...]
    """By block, where it is in what the block returns."""
    rows: int
    """How many tokens flow through it."""
    hidden: int


@dataclass(frozen=True)
class _Call:
    given: list[tuple[Path, Tensor]]
    returned: list[tuple[Path, Tensor]]


def find_stream(model: nn.Module, ids: Tensor) -> Stream:
    """The longest list of modules of which each returns what the next is given. Raises `NoLayout`: there is none."""
    lists = dict(_lists(model))
    calls = _watched(model, ids, {block for blocks in lists.values() for block in blocks})
    chained = {name: _links(blocks, calls) for name, blocks in lists.items()}
    name = max(chained, key=lambda name: sum(link is not None for link in chained[name]), default=None)
    if name is None or not any(chained[name]):
        repeated = [name for name, blocks in lists.items() if any(len(calls[block]) > 1 for block in blocks)]
        idle = [name for name, blocks in lists.items() if 0 < sum(not calls[block] for block in blocks) < len(blocks)]
        if repeated:
            why = f"blocks of {repeated[0]} run more than once"
        elif idle:
            why = f"some blocks of {idle[0]} do not run on text"
        else:
            why = "no block is given what another returns"
        raise NoLayout(f"no residual stream was found: {why}")
    links = chained[name]
    if broken := [number for number, link in enumerate(links) if link is None]:
        raise NoLayout(f"something stands between blocks {broken[0]} and {broken[0] + 1} of {name}")
    exits = [link[0] for link in links if link is not None]
    entries = [link[1] for link in links if link is not None]
    blocks = lists[name]
    stream = dict(calls[blocks[0]][0].returned)[exits[0]]
    if stream.ndim > 3:
        raise NoLayout("its residual stream consists of several streams, which its blocks mix")
    return Stream(name, blocks, (entries[0], *entries), (*exits, exits[-1]), stream[..., 0].numel(), stream.shape[-1])


def _lists(model: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, ...]]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential | nn.ModuleDict) and len(module) > 1:
            yield name, tuple(module.children())


def _watched(model: nn.Module, ids: Tensor, blocks: set[nn.Module]) -> dict[nn.Module, list[_Call]]:
    """What each block was given and returned, each time that it ran."""
    calls: dict[nn.Module, list[_Call]] = defaultdict(list)

    def look(block: nn.Module, args: Any, kwargs: Any, returned: Any) -> None:
        calls[block].append(_Call(_floats((args, kwargs)), _floats(returned)))

    with ExitStack() as hooks, torch.no_grad():
        for block in blocks:
            hooks.callback(block.register_forward_hook(look, with_kwargs=True).remove)
        try:
            run(model, ids)
        except Exception as error:  # each model checks its inputs in ways of its own
            reason = shorten(" ".join(str(error).split()), 150) or type(error).__name__
            raise NoLayout(f"a small model of its kind does not run on tokens: {reason}") from None
    return calls


def _floats(value: Any) -> list[tuple[Path, Tensor]]:
    return [
        (path, tensor.clone()) for path, tensor in tensors(value) if tensor.is_floating_point() and tensor.ndim >= 2
    ]


def _links(blocks: tuple[nn.Module, ...], calls: dict[nn.Module, list[_Call]]) -> list[tuple[Path, Path] | None]:
    """For each block but the last, where what it returns is the same tensor as what the next one is given."""
    if any(len(calls[block]) != 1 for block in blocks):
        return []
    pairs = itertools.pairwise(blocks)
    return [_link(calls[block][0].returned, calls[after][0].given) for block, after in pairs]


def _link(returned: list[tuple[Path, Tensor]], given: list[tuple[Path, Tensor]]) -> tuple[Path, Path] | None:
    equal = (
        (left, entered)
        for left, out in returned
        for entered, into in given
        if out.shape == into.shape and torch.equal(out, into)
    )
    return next(equal, None)


def run(model: nn.Module, ids: Tensor) -> Any:
    """A forward pass that keeps no state."""
    try:
        return model(input_ids=ids, use_cache=False)
    except TypeError:
        return model(input_ids=ids)
