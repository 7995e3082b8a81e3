"""What runs trials: on a model that is in memory as a whole, or on one that is read a layer at a time, all trials of a
round in one read."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from typing import Literal, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from excise.checkpoint.weights import Checkpoint
from excise.discovery.twin import MOST_LAYERS, build, twin_config
from excise.inference.entering import Entered, enter, next_token
from excise.inference.forward import (
    FIRST_BATCH,
    Batch,
    Tokens,
    Watch,
    all_batches,
    in_batches,
    logits_at,
    smaller,
    stream_of,
    watch_stream,
)
from excise.inference.loading.models import auto_class, decoder_layers
from excise.inference.passes import Offloaded, open_model, sizes_of
from excise.plumbing.errors import StageError
from excise.plumbing.machine import Placement, eighth, give_back, tokens_that_fit
from excise.plumbing.private.transformers import attend_alike
from excise.plumbing.progress import Advance
from excise.trials.growing import Growing
from excise.trials.spool import Spool
from excise.trials.tree import Batching, Job, Sharing, growings, sharing

TOKENS_AT_ONCE = 4096
"""Most tokens of forks in one call of a layer."""
HELD = 1 << 30
"""Bytes of streams that are held in memory at once: of a model in memory, trials beyond run afterwards; of one that is
read, streams beyond wait in files."""


class Engine(Protocol):
    """Runs trials."""

    model: PreTrainedModel
    """For hooks; its parameters may be in memory only while trials run."""
    reads: bool
    """Whether each round reads the whole model from its files."""

    def sharing(self, prompts: Tokens) -> Sharing:
        """What trials of some prompts may share."""
        ...

    def cost(self, jobs: Sequence[Job]) -> int:
        """Tokens times layers that jobs take, known answers included."""
        ...

    def run(self, jobs: Sequence[Job], advance: Advance) -> None:
        """Run the jobs, one after the other or, layer by layer, together; `advance` is told tokens times layers. What
        is taken is taken again if memory ran out. Raises `StageError`: memory is too small for a single prompt."""
        ...


def whole_cost(model: PreTrainedModel, prompts: Tokens) -> int:
    """Tokens times layers of one pass of all prompts."""
    return len(decoder_layers(model)) * sum(map(len, prompts))


class Watched:
    """One batch of prompts on its way through the layers of the base under hooks, with nothing shared, as hooks may
    look at all that layers do."""

    numbers = (0,)

    def __init__(
        self,
        model: PreTrainedModel,
        batch: Batch,
        watch: Watch,
        device: torch.device,
        keep: Callable[[Tensor], Tensor],
    ) -> None:
        self.model, self.prompts = model, batch
        self._watch, self._device, self._keep = watch, device, keep
        self._entered: Entered | None = None

    def cost(self, _layer: int) -> int:
        """Tokens that pass through a layer."""
        return self.prompts.ids.numel()

    @property
    def whole_cost(self) -> int:
        return len(decoder_layers(self.model)) * self.cost(0)

    @torch.inference_mode()
    def begin(self) -> None:
        """Enter the first layer."""
        self._entered = enter(self.model, self.prompts.ids, self.prompts.mask, self._device)
        self._entered.stream = self._keep(self._entered.stream)

    @torch.inference_mode()
    def through(self, layer: int) -> None:
        """Pass through a layer."""
        assert self._entered is not None
        args, named = self._entered.calls[layer]
        with ExitStack() as undo:
            self._watch(self.prompts, undo)
            out = decoder_layers(self.model)[layer](self._entered.stream.to(self._device), *args, **named)
        self._entered.stream = self._keep(stream_of(out))

    def at_ends(self) -> Iterator[tuple[Sequence[int], Tensor]]:
        """As of `Growing`."""
        assert self._entered is not None
        yield self.numbers, self._entered.stream[torch.arange(len(self.prompts.rows)), self.prompts.ends]

    @torch.inference_mode()
    def answers(self) -> Iterator[tuple[Sequence[int], list[int], Tensor]]:
        """As of `Growing`."""
        for numbers, ends in self.at_ends():
            yield numbers, self.prompts.rows, next_token(self.model, ends.to(self._device))


def tell(job: Job, passing: Growing | Watched, measurement: int) -> None:
    """Tell a job of the stream at a measurement."""
    if job.see is not None:
        for numbers, ends in passing.at_ends():
            for number in numbers:
                job.see(number, passing.prompts.rows, measurement, ends)


def answer(job: Job, passing: Growing | Watched) -> None:
    """Give a job its answers."""
    for numbers, places, log_probabilities in passing.answers():
        for number in numbers:
            job.take(number, places, log_probabilities)
    job.finished(passing.numbers, passing.prompts.rows)


class InMemory:
    """A model that is in memory as a whole."""

    reads = False

    def __init__(self, model: PreTrainedModel, batch_size: int = FIRST_BATCH) -> None:
        """`batch_size` is the number of prompts that advance together at most."""
        self.model, self._batch_size = model, batch_size
        self._tokens = min(TOKENS_AT_ONCE, tokens_that_fit(sizes_of(model), eighth(model.device)))
        self._has_said = False

    def sharing(self, prompts: Tokens) -> Sharing:
        return sharing(self.model, prompts)

    def cost(self, jobs: Sequence[Job]) -> int:
        return sum(map(self._cost, jobs))

    def _cost(self, job: Job) -> int:
        if job.watch is not None or not job.sharing.layers:
            return len(job.trials) * whole_cost(self.model, job.prompts)
        return sum(growing.whole_cost for growing in self._growings(job))

    def _growings(self, job: Job) -> Iterator[Growing]:
        return growings(self.model, job, Batching(self.model.device, self._batch_size, self._tokens, HELD))

    def run(self, jobs: Sequence[Job], advance: Advance) -> None:
        for job in jobs:
            if job.watch is not None or not job.sharing.layers:
                self._one_by_one(job, advance)
            else:
                self._together(job, advance)

    def _together(self, job: Job, advance: Advance) -> None:
        done = 0
        while True:
            try:
                for growing in self._growings(job):
                    rows = growing.prompts.rows
                    if job.is_known(growing.numbers, rows):
                        advance(growing.whole_cost)
                        done += growing.whole_cost
                        continue
                    give_back()
                    growing.begin()
                    tell(job, growing, 0)
                    for layer in range(len(growing.layers)):
                        growing.through(layer)
                        tell(job, growing, layer + 1)
                        advance(growing.cost(layer))
                        done += growing.cost(layer)
                    answer(job, growing)
                return
            except RuntimeError as error:
                self._batch_size = smaller(min(self._batch_size, len(job.prompts)), error, "starting again")
                advance(-done)
                done = 0

    @torch.inference_mode()
    def _one_by_one(self, job: Job, advance: Advance) -> None:
        if job.watch is None and not self._has_said:
            name = type(self.model).__name__
            print(f"{name} cannot be run layer by layer, so each trial takes a pass of its own", file=sys.stderr)
            self._has_said = True
        rows = list(range(len(job.prompts)))
        for number in range(len(job.trials)):
            if not job.is_known([number], rows):
                in_batches(job.prompts, self._batch_size, lambda _: None, partial(self._whole_pass, job, number))
                job.finished([number], rows)
            advance(whole_cost(self.model, job.prompts))

    def _whole_pass(self, job: Job, number: int, batch: Batch) -> None:
        """Take what a batch of prompts is answered in a trial."""
        wanted = [
            (place, row, token)
            for row, prompt in enumerate(batch.rows)
            for place, token in (job.places[prompt] if job.places is not None else [(prompt, int(batch.last[row]))])
        ]
        places, rows, tokens = ([each[part] for each in wanted] for part in range(3))
        positions = torch.tensor(tokens).unique()
        with ExitStack() as undo:
            self._watch(job, number, batch, undo)
            logits = logits_at(self.model, batch, positions)
        at_places = logits[rows, torch.searchsorted(positions, torch.tensor(tokens))].float()
        job.take(number, places, torch.log_softmax(at_places, dim=-1).cpu())

    def _watch(self, job: Job, number: int, batch: Batch, undo: ExitStack) -> None:
        job.trials[number].watch(self.model)(batch, undo)
        if job.watch is not None:
            job.watch(batch, undo)

        see = job.see
        if see is not None:
            watch_stream(self.model, lambda place, stream: see(number, batch.rows, place, batch.at_end(stream)), undo)


class LayerByLayer:
    """A model of which one part is in memory at a time: all trials of a round pass through a layer before the next one
    is read."""

    reads = True

    def __init__(self, passes: Offloaded, batch_size: int = FIRST_BATCH) -> None:
        """`batch_size` is the number of prompts that advance together at most."""
        self.model, self._layered, self._idle = passes.model, passes.layered, passes.idle_device
        self._batch_size = batch_size
        room = eighth(self._layered.device, self._layered.largest_part)
        self._tokens = min(TOKENS_AT_ONCE, tokens_that_fit(sizes_of(self.model), room))

    def sharing(self, prompts: Tokens) -> Sharing:
        """Tried on a small random model that is wired alike: trying it on the model itself would read it again."""
        vocabulary = self._twin.config.get_text_config().vocab_size
        found = sharing(self._twin, [[token % vocabulary for token in prompt] for prompt in prompts])
        if not found.layers:
            raise StageError(
                f"{type(self.model).__name__} cannot be run layer by layer, so trials of it need it in memory as a "
                "whole; use a larger machine"
            )
        return found

    @cached_property
    def _twin(self) -> PreTrainedModel:
        config = self.model.config
        twin = build(twin_config(config, MOST_LAYERS), auto_class(config)).float()
        attend_alike(twin, config)
        return twin

    def cost(self, jobs: Sequence[Job]) -> int:
        return sum(passing.whole_cost for job in jobs for passing in self._passings(job, lambda stream: stream))

    def _passings(self, job: Job, keep: Callable[[Tensor], Tensor]) -> Iterator[Growing | Watched]:
        device = self._layered.device
        if job.watch is None:
            yield from growings(self.model, job, Batching(device, self._batch_size, self._tokens, sys.maxsize), keep)
            return
        for batch in all_batches(job.prompts, self._batch_size):
            yield Watched(self.model, batch, job.watch, device, keep)

    def run(self, jobs: Sequence[Job], advance: Advance) -> None:
        done = 0

        def progress(steps: int) -> None:
            nonlocal done
            done += steps
            advance(steps)

        while True:
            try:
                self._read(jobs, progress)
                return
            except RuntimeError as error:
                most = max(len(job.prompts) for job in jobs)
                self._batch_size = smaller(min(self._batch_size, most), error, "starting again")
                progress(-done)
            give_back()

    def _read(self, jobs: Sequence[Job], advance: Advance) -> None:
        """Run all jobs in one read."""
        spool = Spool(self._idle, min(HELD, eighth(self._idle, self._layered.largest_part)))
        waiting = []
        for job in jobs:
            for passing in self._passings(job, spool.keep):
                if job.is_known(passing.numbers, passing.prompts.rows):
                    advance(passing.whole_cost)
                else:
                    waiting.append((job, passing))
        for part in self._layered.passing(with_head=True) if waiting else ():
            for job, passing in waiting:
                if part == self._layered.frame:
                    passing.begin()
                    tell(job, passing, 0)
                elif part == self._layered.head:
                    answer(job, passing)
                else:
                    passing.through(part)
                    tell(job, passing, part + 1)
                    advance(passing.cost(part))


def open_engine(
    checkpoint: Checkpoint,
    dtype: str,
    placement: Placement,
    offload: Literal["auto", "on", "off"],
    prompts: Tokens,
) -> Engine:
    """The model in memory, or to be read a layer at a time, as `open_model` decides for all prompts in one pass."""
    passes = open_model(checkpoint, dtype, placement, offload, prompts, "auto")
    return LayerByLayer(passes) if isinstance(passes, Offloaded) else InMemory(passes.model)
