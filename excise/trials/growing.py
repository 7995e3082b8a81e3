"""One batch of prompts on its way through the layers: trials are one node until they differ, and fork there."""

import copy
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from excise.inference.entering import Call, Entered, enter
from excise.inference.forward import stream_of
from excise.inference.loading.models import decoder
from excise.trials.caches import repeated, stretched
from excise.trials.changes import Change, InWeights, Trial
from excise.trials.forks import change_modules, patch
from excise.trials.simulation import simulated

TOKENS_AT_ONCE = 4096
"""Most tokens of forks in one call of a layer."""
_ENTERED = 4
"""Numbers of forks of which the decoder's calls are kept."""


@dataclass
class Prompts:
    """Some prompts, of which trials compute `ids`; what comes before these is shared."""

    rows: list[int]
    ids: Tensor
    """``[prompts, width]``."""
    mask: Tensor
    """``[prompts, before + width]``."""
    ends: Tensor
    """``[prompts]``: index of the last token among `ids`."""
    before: Tensor
    """``[1, before]`` tokens that all of them begin with, which each fork computes once; there may be none."""
    held: Any = None
    """The base's cache of the tokens before `ids`, of every prompt; then no fork computes these."""


@dataclass
class Node:
    """Trials that are one so far."""

    trials: list[int]
    stream: Tensor
    """``[prompts, width, hidden]``."""
    before: Tensor | None
    """``[1, before, hidden]``: that of the common beginning."""
    passed: dict[str, Any]
    """What its layers hand on to later ones beside the stream, by the name of the argument."""
    passed_before: dict[str, Any]
    """The same of the common beginning."""

    def fork(self, trials: list[int]) -> "Node":
        """One with some of its trials."""
        passed, passed_before = (
            {name: copy.copy(value) for name, value in each.items()} for each in (self.passed, self.passed_before)
        )
        return Node(trials, self.stream, self.before, passed, passed_before)


Fork = tuple[tuple[Change, ...], Node]
"""What trials change in a layer, and where they are before it."""


class Growing:
    """One batch of prompts on its way through the layers."""

    def __init__(self, model: PreTrainedModel, layers: Sequence[nn.Module], prompts: Prompts) -> None:
        self.model, self.layers, self.prompts = model, layers, prompts
        self.computed = 0
        self._entered: dict[tuple[int, bool], Entered] = {}
        self._state: Any = None
        self.before: Tensor | None = None
        if prompts.before.shape[1]:
            self._state = decoder(model)(input_ids=prompts.before.to(model.device), use_cache=True).past_key_values
            self.computed += prompts.before.shape[1] * len(layers)
            self.before = self._enter(1, before=True).stream
        self.first = self._enter(1)

    def _enter(self, times: int, before: bool = False) -> Entered:
        """What the decoder calls its layers with for so many forks."""
        if (times, before) not in self._entered:
            prompts, device = self.prompts, self.model.device
            if before:
                ids = prompts.before.repeat(times, 1)
                entered = enter(self.model, ids, torch.ones_like(ids), device, DynamicCache(config=self.model.config))
            else:
                ids, mask = prompts.ids.repeat(times, 1), prompts.mask.repeat(times, 1)
                cache = None
                if (kept := prompts.held if self._state is None else self._state) is not None:
                    cache = stretched(kept, len(ids))
                # Looked at once, for the prompts by themselves.
                entered = enter(self.model, ids, mask, device, cache, is_checked=times > 1)
            while len(self._entered) >= _ENTERED:
                del self._entered[next(iter(self._entered))]
            self._entered[times, before] = entered
        return self._entered[times, before]

    def leaves(self, trials: Sequence[Trial], numbers: Sequence[int]) -> list[Node]:
        """The trials behind the last layer."""
        passed = _handed_on(self.first.calls)
        passed_before = {} if self.before is None else _handed_on(self._enter(1, before=True).calls)
        live = [Node([], self.first.stream, self.before, passed, passed_before).fork(list(numbers))]
        # What layers hand on is a single fork's.
        at_once = 1 if passed else max(1, TOKENS_AT_ONCE // self.prompts.ids.numel())
        for layer in range(len(self.layers)):
            forks: list[Fork] = [
                (changes, node.fork(group))
                for node in live
                for changes, group in split(node.trials, partial(_changes_at, trials, layer)).items()
            ]
            alone = [fork for fork in forks if any(isinstance(change, InWeights) for change in fork[0])]
            together = [fork for fork in forks if not any(isinstance(change, InWeights) for change in fork[0])]
            parts = [[fork] for fork in alone]
            parts += [together[start : start + at_once] for start in range(0, len(together), at_once)]
            for part in parts:
                self._through(layer, part)
            live = [node for _, node in forks]
        return live

    def _through(self, layer: int, forks: Sequence[Fork]) -> None:
        """Pass forks through a layer."""
        prompts, times = self.prompts, len(forks)
        nodes = [node for _, node in forks]
        # Before hooks are set, as layers stand aside meanwhile.
        call = self._enter(times).calls[layer]
        call_before = None if self.before is None else self._enter(times, before=True).calls[layer]
        edits = [edit for changes, _ in forks for each in changes if isinstance(each, InWeights) for edit in each.edits]
        with ExitStack() as undo:
            undo.enter_context(simulated(self.model, edits))
            rows = change_modules([changes for changes, _ in forks], undo)
            cache: Any = None
            if call_before is not None:
                own = DynamicCache(config=self.model.config)
                stream = torch.cat([node.before for node in nodes if node.before is not None])
                rows[0] = stream.shape[1]
                out = self._call(layer, stream, call_before, own, nodes[0].passed_before)
                for node, part in zip(nodes, out.split(1), strict=True):
                    node.before = part
                cache = repeated(own, layer, len(prompts.rows), each=True)
            elif prompts.held is not None:
                cache = repeated(prompts.held, layer, times)
            stream = torch.cat([node.stream for node in nodes])
            rows[0] = prompts.ids.numel()
            patch([changes for changes, _ in forks], prompts.ids, prompts.ends, undo)
            out = self._call(layer, stream, call, cache, nodes[0].passed)
            for node, part in zip(nodes, out.split(len(prompts.rows)), strict=True):
                node.stream = part

    def _call(self, layer: int, stream: Tensor, call: Call, cache: Any, passed: dict[str, Any]) -> Tensor:
        args = [cache if isinstance(value, Cache) else value for value in call[0]]
        named = {name: cache if isinstance(value, Cache) else value for name, value in call[1].items()}
        self.computed += stream.shape[0] * stream.shape[1]
        return stream_of(self.layers[layer](stream, *args, **{**named, **passed}))


def split(numbers: Sequence[int], key: Callable[[int], tuple[Change, ...]]) -> dict[tuple[Change, ...], list[int]]:
    found: dict[tuple[Change, ...], list[int]] = {}
    for number in numbers:
        found.setdefault(key(number), []).append(number)
    return found


def _changes_at(trials: Sequence[Trial], layer: int, number: int) -> tuple[Change, ...]:
    return trials[number].at(layer)


def _handed_on(calls: Sequence[Call]) -> dict[str, Any]:
    """Arguments by which layers hand something on to later ones."""
    named = {name: value for _, named in calls for name, value in named.items()}
    return {name: value for name, value in named.items() if isinstance(value, MutableMapping)}
