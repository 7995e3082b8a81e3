"""One batch of prompts on its way through the layers: trials are one node until they differ, and fork there."""

import copy
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from excise.inference.entering import Call, Entered, enter, next_token
from excise.inference.forward import stream_of
from excise.trials.caches import pretended, repeated
from excise.trials.changes import ENTERING, Change, InWeights, Trial
from excise.trials.forks import change_modules, patch
from excise.trials.simulation import simulated

LOGITS_AT_ONCE = 128
"""Tokens whose logits are computed at once: vocabularies are large."""


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
    """Tokens before `ids`; there may be none. ``[1, before]``, with which all prompts begin and which each fork
    computes once; or ``[prompts, before]``, which are the base's in all trials."""
    is_held: bool = False
    """Whether they are the base's."""
    wanted: Sequence[tuple[int, int, int]] = ()
    """Tokens whose logits are wanted: the place of what is answered there, the row among these prompts, and the index
    among `ids`. Without any, it is each prompt's last token, whose place is the prompt's number."""

    def places(self) -> list[tuple[int, int, int]]:
        last = [(number, row, int(end)) for row, (number, end) in enumerate(zip(self.rows, self.ends, strict=True))]
        return list(self.wanted) or last


@dataclass(frozen=True)
class Fork:
    """Trials that are one up to a layer, and what they change in it."""

    parent: int
    """Their number among the forks of the layer before."""
    changes: tuple[Change, ...]
    trials: list[int]

    @property
    def is_alone(self) -> bool:
        """Whether it cannot share a batch, as it changes weights."""
        return any(isinstance(change, InWeights) for change in self.changes)


@dataclass
class Node:
    """Trials that are one so far."""

    trials: list[int]
    stream: Tensor
    """``[prompts, width, hidden]``."""
    before: Tensor | None
    """``[1, before, hidden]``: that of the common beginning, if forks compute it."""
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


class Growing:
    """One batch of prompts on its way through the layers, in trials that enter alike. Each step needs only a part of
    the model: `begin` the frame, `through` a layer, `ends` the frame and the output head."""

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[nn.Module],
        prompts: Prompts,
        trials: Sequence[Trial],
        numbers: Sequence[int],
        device: torch.device,
        tokens_at_once: int,
        keep: Callable[[Tensor], Tensor] = lambda stream: stream,
    ) -> None:
        """Of `trials`, those of these numbers. So many tokens of several forks at most pass through a layer as one
        batch. `keep` takes a stream to where it waits for the next layer."""
        self.model, self.layers, self.prompts, self.numbers = model, layers, prompts, numbers
        self._device, self._tokens_at_once, self._keep = device, tokens_at_once, keep
        self._entering = trials[numbers[0]].at(ENTERING)
        self.forks = forks_of(trials, numbers, len(layers))
        self.nodes: list[Node] = []
        self._held: Node | None = None
        self._entered: dict[tuple[int, bool], Entered] = {}

    @property
    def tokens(self) -> int:
        """Of one fork."""
        return self.prompts.ids.numel() + (0 if self.prompts.is_held else self.prompts.before.numel())

    def cost(self, layer: int) -> int:
        """Tokens that pass through a layer."""
        held = self.prompts.before.numel() if self.prompts.is_held else 0
        return len(self.forks[layer]) * self.tokens + held

    @property
    def whole_cost(self) -> int:
        return sum(map(self.cost, range(len(self.layers))))

    @torch.inference_mode()
    def begin(self) -> None:
        """Enter the first layer."""
        with changed_weights(self.model, self._entering):
            self._enter(1, before=False)
            if self._has_before:
                self._enter(1, before=True)
            for times in self._batches:
                self._enter(times, before=False)
                if self._has_before and not self.prompts.is_held:
                    self._enter(times, before=True)
        entered, before = (self._entered.get((1, of_before)) for of_before in (False, True))
        assert entered is not None
        passed = _handed_on(entered.calls)
        passed_before = {} if before is None else _handed_on(before.calls)
        # What layers hand on is a single fork's.
        self._is_single = bool(passed)
        stream_before = None if before is None else self._keep(before.stream)
        if self.prompts.is_held and stream_before is not None:
            self._held = Node([], stream_before, None, passed_before, {})
            stream_before, passed_before = None, {}
        self.nodes = [Node(list(self.numbers), self._keep(entered.stream), stream_before, passed, passed_before)]
        for each in self._entered.values():
            each.stream = each.stream[:0]  # nothing but the calls is needed any more

    @property
    def _has_before(self) -> bool:
        return self.prompts.before.shape[1] > 0

    @cached_property
    def _batches(self) -> list[int]:
        """Numbers of forks that may pass as one batch: powers of two, so that few have to be entered."""
        most = max(sum(not fork.is_alone for fork in forks) for forks in self.forks)
        at_once = min(most, max(1, self._tokens_at_once // self.prompts.ids.numel()))
        return [1 << power for power in range(at_once.bit_length())]

    def _enter(self, times: int, before: bool) -> None:
        """What the decoder calls its layers with for so many forks."""
        if (times, before) in self._entered:
            return
        prompts = self.prompts
        if before:
            ids, cache = prompts.before.repeat(times, 1), DynamicCache(config=self.model.config)
            mask = torch.ones_like(ids)
        else:
            ids, mask, cache = prompts.ids.repeat(times, 1), prompts.mask.repeat(times, 1), None
            if self._has_before:
                cache = pretended(self.model, len(ids), prompts.before.shape[1], self._device)
        # Looked at once, for the prompts by themselves.
        entered = enter(self.model, ids, mask, self._device, cache, is_checked=times > 1)
        self._entered[times, before] = entered

    @torch.inference_mode()
    def through(self, layer: int) -> None:
        """Pass all trials through a layer."""
        forks = self.forks[layer]
        nodes = [self.nodes[fork.parent].fork(fork.trials) for fork in forks]
        held = self._through_held(layer)
        alone = [[number] for number, fork in enumerate(forks) if fork.is_alone]
        together = [number for number, fork in enumerate(forks) if not fork.is_alone]
        for part in [*alone, *self._parts(together)]:
            self._through(layer, [forks[number] for number in part], [nodes[number] for number in part], held)
        self.nodes = nodes

    def _parts(self, together: Sequence[int]) -> Iterator[Sequence[int]]:
        start = 0
        while start < len(together):
            left = len(together) - start
            size = 1 if self._is_single else next(size for size in reversed(self._batches) if size <= left)
            yield together[start : start + size]
            start += size

    def _through_held(self, layer: int) -> Any:
        """Pass what is the base's through a layer, and return what this keeps of it."""
        if self._held is None:
            return None
        own = DynamicCache(config=self.model.config)
        held, call = self._held, self._entered[1, True].calls[layer]
        held.stream = self._keep(self._call(layer, held.stream.to(self._device), call, own, held.passed))
        return own

    def _through(self, layer: int, forks: Sequence[Fork], nodes: Sequence[Node], held: Any) -> None:
        """Pass forks through a layer as one batch."""
        prompts, times = self.prompts, len(forks)
        call = self._entered[times, False].calls[layer]
        with ExitStack() as undo:
            for fork in forks:
                undo.enter_context(changed_weights(self.model, fork.changes))
            rows = change_modules([fork.changes for fork in forks], undo)
            cache: Any = None
            if held is not None:
                cache = repeated(held, layer, times)
            elif self._has_before:
                own, call_before = DynamicCache(config=self.model.config), self._entered[times, True].calls[layer]
                stream = torch.cat([node.before.to(self._device) for node in nodes if node.before is not None])
                rows[0] = stream.shape[1]
                out = self._call(layer, stream, call_before, own, nodes[0].passed_before)
                for node, part in zip(nodes, out.split(1), strict=True):
                    node.before = self._keep(part)
                cache = repeated(own, layer, len(prompts.rows), each=True)
            stream = torch.cat([node.stream.to(self._device) for node in nodes])
            rows[0] = prompts.ids.numel()
            patch([fork.changes for fork in forks], prompts.ids, prompts.ends, undo)
            out = self._call(layer, stream, call, cache, nodes[0].passed)
            for node, part in zip(nodes, out.split(len(prompts.rows)), strict=True):
                node.stream = self._keep(part)

    def _call(self, layer: int, stream: Tensor, call: Call, cache: Any, passed: dict[str, Any]) -> Tensor:
        args = [cache if isinstance(value, Cache) else value for value in call[0]]
        named = {name: cache if isinstance(value, Cache) else value for name, value in call[1].items()}
        return stream_of(self.layers[layer](stream, *args, **{**named, **passed}))

    def at_ends(self) -> Iterator[tuple[list[int], Tensor]]:
        """The stream at each prompt's last token, ``[prompts, hidden]``, with the trials whose it is."""
        for node in self.nodes:
            yield node.trials, node.stream[torch.arange(len(self.prompts.rows)), self.prompts.ends]

    @torch.inference_mode()
    def answers(self) -> Iterator[tuple[list[int], list[int], Tensor]]:
        """Trials, places, and what is answered there: the log-probabilities of the next token, ``[places, vocabulary]``
        float32 on the CPU."""
        wanted = self.prompts.places()
        with changed_weights(self.model, self._entering):
            for node in self.nodes:
                for start in range(0, len(wanted), LOGITS_AT_ONCE):
                    some = wanted[start : start + LOGITS_AT_ONCE]
                    places, rows, tokens = ([each[part] for each in some] for part in range(3))
                    yield node.trials, places, next_token(self.model, node.stream[rows, tokens].to(self._device))


def forks_of(trials: Sequence[Trial], numbers: Sequence[int], layers: int) -> list[list[Fork]]:
    """By layer, what trials that enter alike are in it."""
    courses: list[list[Fork]] = []
    groups = [list(numbers)]
    for layer in range(layers):
        changes = {number: trials[number].at(layer) for number in numbers}
        forks = [
            Fork(parent, changed, group)
            for parent, together in enumerate(groups)
            for changed, group in split(together, changes.__getitem__).items()
        ]
        courses.append(forks)
        groups = [fork.trials for fork in forks]
    return courses


def split(numbers: Sequence[int], key: Callable[[int], tuple[Change, ...]]) -> dict[tuple[Change, ...], list[int]]:
    """The numbers that have the same key, by it."""
    found: dict[tuple[Change, ...], list[int]] = {}
    for number in numbers:
        found.setdefault(key(number), []).append(number)
    return found


@contextmanager
def changed_weights(model: PreTrainedModel, changes: Sequence[Change]) -> Iterator[None]:
    """Within the block, weights are as some changes have them."""
    with ExitStack() as undo:
        for change in changes:
            if isinstance(change, InWeights):
                undo.enter_context(simulated(model, change.edits, change.shifts))
        yield


def _handed_on(calls: Sequence[Call]) -> dict[str, Any]:
    """Arguments by which layers hand something on to later ones."""
    named = {name: value for _, named in calls for name, value in named.items()}
    return {name: value for name, value in named.items() if isinstance(value, MutableMapping)}
