"""Passing prompts through a model that is in memory as a whole, or of which one layer at a time is."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from excise.checkpoint.weights import Checkpoint
from excise.inference.forward import (
    Batch,
    BatchSize,
    Tokens,
    Watch,
    all_batches,
    first_size,
    in_batches,
    run_decoder,
    smaller,
    split_call,
    stream_of,
)
from excise.inference.layers import LayeredModel
from excise.inference.loading.models import decoder_layers, load_model, weights_need, without_weights
from excise.plumbing.errors import StageError
from excise.plumbing.machine import (
    GIB,
    Need,
    Placement,
    Sizes,
    Work,
    batch_bytes,
    held_bytes,
    impossible,
    limits,
    resident_bytes,
    streamed_bytes,
    too_small,
)
from excise.plumbing.progress import Advance


class Passes:
    """A model in memory as a whole, which prompts can be passed through with hooks on its modules."""

    unit = "prompts"
    """What `steps` counts."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        """What hooks are set on. Its parameters may be in memory only while prompts pass."""

    def steps(self, prompts: int) -> int:
        """How far `run` is when it is done with this many prompts, in what it tells `advance`."""
        return prompts

    def run(self, prompts: Tokens, batch_size: BatchSize, position: int, watch: Watch, advance: Advance) -> None:
        """Pass all prompts through the decoder layers, a batch at a time. `position` is which token of each is asked
        about, counted from its end. `watch` sets hooks on the layers and on what is in them: each layer is called once
        for each batch, and again where memory ran out. `advance` is told the number of steps done since, which may be
        negative. Raises `StageError`: memory is too small for a single prompt."""

        def compute(batch: Batch) -> None:
            with ExitStack() as undo:
                watch(batch, undo)
                run_decoder(self.model, batch)

        in_batches(prompts, batch_size, advance, compute, position)


class Offloaded(Passes):
    """The same with one layer at a time in memory: all batches pass through it before the next one is loaded."""

    unit = "layers of prompts"

    def __init__(self, layered: LayeredModel, rest: torch.device) -> None:
        """`rest`: where the stream of a batch is while others pass."""
        super().__init__(layered.model)
        self.layered, self.rest = layered, rest

    def steps(self, prompts: int) -> int:
        """One for each prompt and layer."""
        return prompts * len(decoder_layers(self.model))

    def run(self, prompts: Tokens, batch_size: BatchSize, position: int, watch: Watch, advance: Advance) -> None:
        """Layer by layer, and in it batch by batch. Where memory runs out, it starts again."""
        size = first_size(batch_size)
        while True:
            batches = all_batches(prompts, size, position)
            done = 0
            try:
                for steps in self._through_layers(batches, watch):
                    done += steps
                    advance(steps)
                return
            except RuntimeError as error:
                size = smaller(max(len(batch.rows) for batch in batches), error, "starting again")
                advance(-done)

    def _through_layers(self, batches: list[Batch], watch: Watch) -> Iterator[int]:
        """Yields the number of prompts that passed through a layer, each time that a batch did."""
        device = self.layered.device
        with self.layered.reading_ahead() as read:
            read(0)
            with self.layered.loaded(self.layered.frame):
                entered = [self._enter(batch) for batch in batches]
            for number, layer in enumerate(decoder_layers(self.model)):
                with self.layered.loaded(number):
                    if number + 1 < self.layered.frame:
                        read(number + 1)
                    for batch, passing in zip(batches, entered, strict=True):
                        args, named = passing.calls[number]
                        with ExitStack() as undo:
                            watch(batch, undo)
                            # In one line, so that nothing else of a batch is held while others pass.
                            passing.stream = stream_of(layer(passing.stream.to(device), *args, **named)).to(self.rest)
                        yield len(batch.rows)

    def _enter(self, batch: Batch) -> "_Entered":
        """What the decoder calls its layers with: it runs with layers that give back what they are given."""
        streams: list[Tensor] = []
        calls: list[_Call] = []

        def note(*args: Any, **kwargs: Any) -> Tensor:
            stream, others, named = split_call(args, kwargs)
            if not streams:
                # A copy, so that a change in place is seen too.
                streams.append(stream.clone())
            elif not torch.allclose(stream, streams[0], rtol=0, atol=0, equal_nan=True):
                raise StageError(
                    f"{type(self.model).__name__} does more between its layers than pass on the stream: it cannot "
                    "be run layer by layer; set measure.stream: off"
                )
            calls.append((others, named))
            return stream

        with ExitStack() as undo:
            for layer in decoder_layers(self.model):
                layer.forward = note
                undo.callback(layer.__dict__.pop, "forward")
            run_decoder(self.model, batch, self.layered.device)
        return _Entered(streams[0].to(self.rest), calls)


_Call = tuple[tuple[Any, ...], dict[str, Any]]
"""What a layer is called with beside the stream: masks, positions, what layers share."""


@dataclass
class _Entered:
    """A batch on its way through the layers."""

    stream: Tensor
    calls: list[_Call]


def open_model(
    checkpoint: Checkpoint,
    dtype: str,
    placement: Placement,
    offload: Literal["auto", "on", "off"],
    prompts: Tokens,
    batch_size: BatchSize,
) -> Passes:
    """Load the model, or make ready to load it layer by layer: with `auto` where it does not fit with what will pass
    through it, with a message. One layer at a time runs on the first GPU. Raises `StageError`: it cannot be loaded."""
    batches = all_batches(prompts, first_size(batch_size))
    work = Work.of((len(batch.rows), batch.ids.shape[1]) for batch in batches)
    if offload == "off" or (offload == "auto" and _fits(checkpoint, dtype, placement, work)):
        return Passes(load_model(checkpoint, dtype, placement))
    device = torch.device("cuda", 0) if placement == "balanced" else placement
    layered = LayeredModel(checkpoint, dtype, device)
    return Offloaded(layered, _resting_place(checkpoint, layered, work))


def _fits(checkpoint: Checkpoint, dtype: str, placement: Placement, work: Work) -> bool:
    """Whether the model fits as a whole; where it does not, a message says so."""
    model = without_weights(checkpoint.folder, dtype)
    weights, sizes = weights_need(checkpoint, model), _sizes(model)
    on_cpu = placement != "balanced" and placement.type == "cpu"
    memory = resident_bytes(weights.memory, sizes, work) if on_cpu else weights.memory + batch_bytes(sizes, work)
    limit = too_small(need := Need(memory, weights.mapped), limits(placement))
    if limit is not None:
        print(
            f"Measure: to hold the whole model takes {need.of(limit) / GIB:,.1f} GiB, and {limit.name} has "
            f"{limit.free / GIB:,.1f} GiB free: one layer at a time is read",
            file=sys.stderr,
        )
    return limit is None


def _resting_place(checkpoint: Checkpoint, layered: LayeredModel, work: Work) -> torch.device:
    """Where the streams of batches are between two layers: beside the layers, if there is room. What cannot fit at all
    is refused before the system ends the process, which would leave no message."""
    cpu, sizes = torch.device("cpu"), _sizes(layered.model)
    if layered.device.type == "cpu":
        need = Need(streamed_bytes(layered.largest_part, sizes, work), mapped=0)
        if limit := impossible(need, limits(cpu)):
            raise StageError(
                f"{checkpoint.folder} takes {need.memory / GIB:,.1f} GiB of memory even layer by layer, and "
                f"{limit.name} has {limit.total / GIB:,.1f} GiB; use a larger machine, a smaller measure.batch_size or "
                "fewer prompts"
            )
        return cpu
    memory = layered.largest_part + held_bytes(sizes, work) + batch_bytes(sizes, work)
    return cpu if too_small(Need(memory, mapped=0), limits(layered.device)) else layered.device


def _sizes(model: PreTrainedModel) -> Sizes:
    return Sizes.of(model.config.get_text_config().to_dict(), model.dtype.itemsize)
