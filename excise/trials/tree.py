"""Trials that advance together, layer by layer, as one tree. They share what they have in common until the first layer
in which they differ, and fork there; forks of a layer are one batch. The prompts' common beginning is computed once for
each fork, and a trial that changes the last token alone runs on the base's keys and values."""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from excise.inference.entering import head
from excise.inference.forward import (
    Tokens,
    all_batches,
    first_token_log_probabilities,
    smaller,
)
from excise.inference.loading.models import decoder, decoder_layers
from excise.plumbing.errors import StageError
from excise.plumbing.machine import give_back
from excise.trials.changes import ENTERING, Change, InWeights, OnModule, Trial
from excise.trials.growing import Growing, Prompts, split
from excise.trials.simulation import simulated

HELD = 1 << 30
"""Bytes of streams that are held at once; trials beyond run afterwards."""
LEAST_SHARED = 2
"""Tokens that a common beginning has to have."""

Take = Callable[[int, list[int], Tensor], None]
"""Receives the number of a trial, rows of prompts, and their log-probabilities ``[rows, vocabulary]``, in nats."""


@dataclass(frozen=True)
class Sharing:
    """What trials of a model may share."""

    layers: bool
    """Whether its layers can be run one by one; if not, each trial takes a pass of its own."""
    beginning: int
    """Tokens that all prompts begin with; 0 if each fork has to compute them for each prompt."""
    holds: bool
    """Whether the last token can be computed by itself, from what the base keeps of those before it."""


def sharing(model: PreTrainedModel, prompts: Tokens) -> Sharing:
    """What gives the answers of whole passes to some prompts, tried once: some models keep states in a way that does
    not let them go on with several tokens, or do more between layers than call them."""
    exact = 3e-5 if model.dtype == torch.float32 else 5e-2
    ends = sorted(prompts, key=len)[:: max(1, len(prompts) - 1)]
    longest = list(ends[-1])
    alike = [longest, [*longest[-2::-1], longest[-1]]]
    entered = decoder_layers(model)[0]
    # Of another trial than the base, as what forks keep has to be their own.
    shifted = Trial((OnModule(0, entered, "input", "shifted", lambda stream: stream + stream.roll(1, -1)),))

    def agrees(settings: Sharing, tried: Tokens, trial: Trial, last: bool) -> bool:
        plain = first_token_log_probabilities(model, tried, "auto", lambda _: None, trial.watch(model))
        found = torch.full_like(plain, torch.nan)

        def take(_trial: int, rows: list[int], given: Tensor) -> None:
            found[rows] = given

        try:
            Tree(model, tried, len(tried), settings).one(trial, last, take)
        except (AttributeError, IndexError, KeyError, RuntimeError, StageError, TypeError, ValueError):  # each its own
            return False
        return bool((found - plain).abs().max() <= exact * plain.abs().max())

    nothing = Sharing(layers=False, beginning=0, holds=False)
    if not all(agrees(nothing, ends, trial, last=False) for trial in (Trial(), shifted)):
        return nothing
    beginning = _common(prompts)
    begins = beginning and agrees(replace(nothing, beginning=beginning), ends, shifted, last=False)
    holds = agrees(replace(nothing, holds=True), alike, Trial(), last=True)
    return Sharing(layers=True, beginning=beginning if begins else 0, holds=holds)


class Tree:
    """Runs trials of a model that is in memory as a whole."""

    def __init__(self, model: PreTrainedModel, prompts: Tokens, batch_size: int, settings: Sharing) -> None:
        """`batch_size` is the number of prompts that advance together at most."""
        self.model, self.prompts = model, prompts
        self._layers = list(decoder_layers(model))
        self._batch_size = batch_size
        self._sharing = settings
        self._kept: list[Prompts] | None = None
        self._has_said = False
        self.computed = 0
        """Tokens times layers so far."""

    @property
    def whole(self) -> int:
        """Tokens times layers of one pass of all prompts."""
        return len(self._layers) * sum(map(len, self.prompts))

    def run(self, trials: Sequence[Trial], take: Take) -> None:
        """Answer all prompts in all trials; `take` is given each of them once for each batch of prompts, and again if
        memory ran out. Raises `StageError`: memory is too small for a single prompt."""
        if not self._sharing.layers:
            self._one_by_one(trials, take)
            return
        is_last = [self._sharing.holds and trial.is_last_only for trial in trials]
        for last in (True, False):
            numbers = [number for number, each in enumerate(is_last) if each is last]
            while numbers:
                try:
                    self._pass(trials, numbers, last, take)
                    break
                except RuntimeError as error:
                    self._kept = None
                    self._batch_size = smaller(min(self._batch_size, len(self.prompts)), error, "starting again")

    def _one_by_one(self, trials: Sequence[Trial], take: Take) -> None:
        if not self._has_said:
            name = type(self.model).__name__
            print(f"{name} cannot be run layer by layer, so each trial takes a pass of its own", file=sys.stderr)
            self._has_said = True
        for number, trial in enumerate(trials):
            watch = trial.watch(self.model)
            answers = first_token_log_probabilities(self.model, self.prompts, self._batch_size, lambda _: None, watch)
            self.computed += self.whole
            take(number, list(range(len(self.prompts))), answers)

    def one(self, trial: Trial, last: bool, take: Take) -> None:
        """Answer all prompts in one trial, by their last tokens alone if `last`."""
        self._pass([trial], [0], last, take)

    @torch.inference_mode()
    def _pass(self, trials: Sequence[Trial], numbers: Sequence[int], last: bool, take: Take) -> None:
        for prompts in self._alike() if last else self._batches():
            give_back()
            self._answer(prompts, trials, numbers, take)

    def _batches(self) -> Iterator[Prompts]:
        """Of prompts whose common beginning is apart."""
        for batch in all_batches(self.prompts, self._batch_size):
            shared = self._sharing.beginning
            before, ids = batch.ids[:1, :shared], batch.ids[:, shared:]
            yield Prompts(batch.rows, ids, batch.mask, batch.ends - shared, before)

    def _alike(self) -> list[Prompts]:
        """Of prompts of one length, whose tokens before the last one have been computed, once for all trials."""
        if self._kept is None:
            by_length: dict[int, list[int]] = defaultdict(list)
            for row, tokens in enumerate(self.prompts):
                by_length[len(tokens)].append(row)
            self._kept = [
                self._with_cache(rows[start : start + self._batch_size])
                for _, rows in sorted(by_length.items())
                for start in range(0, len(rows), self._batch_size)
            ]
        return self._kept

    def _with_cache(self, rows: list[int]) -> Prompts:
        ids = torch.tensor([list(self.prompts[row]) for row in rows])
        held = self._cache(ids[:, :-1]) if ids.shape[1] > 1 else None
        return Prompts(rows, ids[:, -1:], torch.ones_like(ids), torch.zeros(len(rows)).long(), ids[:1, :0], held)

    def _cache(self, ids: Tensor) -> Any:
        """The base's cache of ``[prompts, width]`` tokens without padding."""
        self.computed += ids.numel() * len(self._layers)
        device = self.model.device
        mask = torch.ones_like(ids).to(device)
        given = decoder(self.model)(input_ids=ids.to(device), attention_mask=mask, use_cache=True)
        return given.past_key_values

    def _answer(self, prompts: Prompts, trials: Sequence[Trial], numbers: Sequence[int], take: Take) -> None:
        for entering, group in split(numbers, lambda number: trials[number].at(ENTERING)).items():
            edits = [edit for change in entering if isinstance(change, InWeights) for edit in change.edits]
            with simulated(self.model, edits):
                growing = Growing(self.model, self._layers, prompts)
                streams = growing.first.stream.nbytes + (0 if growing.before is None else growing.before.nbytes)
                at_once = max(1, HELD // streams)
                # Neighbours have most in common, so that few layers are computed again for the next ones.
                ordered = neighbours(trials, group, len(self._layers))
                for start in range(0, len(ordered), at_once):
                    for node in growing.leaves(trials, ordered[start : start + at_once]):
                        ends = node.stream[torch.arange(len(prompts.rows)), prompts.ends]
                        logits = torch.log_softmax(head(self.model, ends).float(), dim=-1).cpu()
                        for number in node.trials:
                            take(number, prompts.rows, logits)
            self.computed += growing.computed


def _common(prompts: Tokens) -> int:
    """How many tokens all prompts begin with, one at least left for each of them."""
    most = min(map(len, prompts)) - 1
    common = next((place for place in range(most) if len({tokens[place] for tokens in prompts}) > 1), most)
    return common if common >= LEAST_SHARED else 0


def neighbours(trials: Sequence[Trial], numbers: Sequence[int], layers: int) -> list[int]:
    """Numbers of trials, those that have most in common next to each other; the same order in every process."""
    seen: dict[tuple[int, tuple[Change, ...]], int] = {}

    def course(number: int) -> list[int]:
        return [seen.setdefault((layer, trials[number].at(layer)), len(seen)) for layer in range(layers)]

    return sorted(numbers, key=course)
