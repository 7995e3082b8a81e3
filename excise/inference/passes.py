"""Passes of prompts through a model that is in memory as a whole, or one layer at a time."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from excise.checkpoint.weights import Checkpoint
from excise.inference.entering import Entered, enter, next_token
from excise.inference.forward import (
    Batch,
    BatchSize,
    Tokens,
    Watch,
    all_batches,
    first_size,
    first_token_of,
    in_batches,
    run_decoder,
    smaller,
    stream_of,
)
from excise.inference.layers import LayeredModel
from excise.inference.loading.models import decoder_layers, load_model, weights_need, without_weights
from excise.plumbing import machine
from excise.plumbing.errors import StageError
from excise.plumbing.machine import GIB, Need, Placement, Sizes, Work
from excise.plumbing.progress import Advance

Answered = Callable[[list[int], Tensor], None]
"""Receives rows of prompts, and the log-probabilities of their answers' first token, ``[rows, vocabulary]`` float32 on
the CPU, in nats."""


class Passes:
    """Forward passes of a model that is in memory as a whole."""

    unit = "prompts"  # what `steps` counts

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model  # for hooks; its parameters may be in memory only during passes

    def steps(self, prompts: int) -> int:
        """What `run` passes to `advance` in total."""
        return prompts

    def run(
        self,
        prompts: Tokens,
        batch_size: BatchSize,
        position: int,
        watch: Watch,
        advance: Advance,
        answered: Answered | None = None,
    ) -> None:
        """Pass all prompts through the decoder layers, as `in_batches` does, and through the output head if someone is
        told what is `answered`. `watch` sets hooks on the layers and their modules: each layer is called once for each
        batch, and again if memory ran out. `advance` receives the number of steps since its last call, which may be
        negative."""

        def compute(batch: Batch) -> None:
            with ExitStack() as undo:
                watch(batch, undo)
                if answered is None:
                    run_decoder(self.model, batch)
                else:
                    answered(batch.rows, first_token_of(self.model, batch))

        in_batches(prompts, batch_size, advance, compute, position)


class Offloaded(Passes):
    """The same with one layer in memory: all batches pass through it before the next layer is loaded."""

    unit = "layers of prompts"

    def __init__(self, layered: LayeredModel, idle_device: torch.device) -> None:
        """`idle_device` holds the streams of batches while others pass."""
        super().__init__(layered.model)
        self.layered, self.idle_device = layered, idle_device

    def steps(self, prompts: int) -> int:
        return prompts * len(decoder_layers(self.model))

    def run(
        self,
        prompts: Tokens,
        batch_size: BatchSize,
        position: int,
        watch: Watch,
        advance: Advance,
        answered: Answered | None = None,
    ) -> None:
        """As in `Passes`; if memory runs out, all layers start again."""
        size = first_size(batch_size)
        while True:
            batches = all_batches(prompts, size, position)
            done = 0
            try:
                for steps in self._through_layers(batches, watch, answered):
                    done += steps
                    advance(steps)
                return
            except RuntimeError as error:
                size = smaller(max(len(batch.rows) for batch in batches), error, "starting again")
                advance(-done)

    def _enter(self, batch: Batch) -> Entered:
        entered = enter(self.model, batch.ids, batch.mask, self.layered.device)
        entered.stream = entered.stream.to(self.idle_device)
        return entered

    def _through_layers(self, batches: list[Batch], watch: Watch, answered: Answered | None) -> Iterator[int]:
        """Yields the number of prompts of each batch that has passed through a layer."""
        device, idle, layers = self.layered.device, self.idle_device, decoder_layers(self.model)
        entered: list[Entered] = []
        for part in self.layered.passing(with_head=answered is not None):
            if part == self.layered.frame:
                entered = [self._enter(batch) for batch in batches]
                continue
            for batch, passing in zip(batches, entered, strict=True):
                if part == self.layered.head:
                    assert answered is not None
                    last = passing.stream[torch.arange(len(batch.rows)), batch.last]
                    answered(batch.rows, next_token(self.model, last.to(device)))
                    continue
                args, named = passing.calls[part]
                with ExitStack() as undo:
                    watch(batch, undo)
                    # A single expression, so that no other tensor of the batch is held while others pass.
                    passing.stream = stream_of(layers[part](passing.stream.to(device), *args, **named)).to(idle)
                yield len(batch.rows)


def open_model(
    checkpoint: Checkpoint,
    dtype: str,
    placement: Placement,
    offload: Literal["auto", "on", "off"],
    prompts: Tokens,
    batch_size: BatchSize,
) -> Passes:
    """Load the model, or prepare to load it layer by layer, on the first GPU only: with `auto` if it does not fit."""
    batches = all_batches(prompts, first_size(batch_size))
    work = Work.of((len(batch.rows), batch.ids.shape[1]) for batch in batches)
    if offload == "off" or (offload == "auto" and _fits(checkpoint, dtype, placement, work)):
        return Passes(load_model(checkpoint, dtype, placement))
    device = torch.device("cuda", 0) if placement == "balanced" else placement
    layered = LayeredModel(checkpoint, dtype, device)
    return Offloaded(layered, _idle_device(checkpoint, layered, work))


def _fits(checkpoint: Checkpoint, dtype: str, placement: Placement, work: Work) -> bool:
    """Whether the model fits as a whole; prints a message if not."""
    model = without_weights(checkpoint.folder, dtype)
    weights, sizes = weights_need(checkpoint, model), sizes_of(model)
    on_cpu = placement != "balanced" and placement.type == "cpu"
    on_gpu = weights.memory + machine.batch_bytes(sizes, work)
    memory = machine.resident_bytes(weights.memory, sizes, work) if on_cpu else on_gpu
    limit = machine.too_small(need := Need(memory, weights.mapped), machine.limits(placement))
    if limit is not None:
        print(
            f"The whole model takes {need.of(limit) / GIB:,.1f} GiB, and {limit.name} has "
            f"{limit.free / GIB:,.1f} GiB free: reading one layer at a time",
            file=sys.stderr,
        )
    return limit is None


def _idle_device(checkpoint: Checkpoint, layered: LayeredModel, work: Work) -> torch.device:
    """The device of the layers if it has room for all batches, else the CPU. Raises `StageError`: neither has."""
    cpu, sizes = torch.device("cpu"), sizes_of(layered.model)
    if layered.device.type == "cpu":
        need = Need(machine.streamed_bytes(layered.largest_part, sizes, work), mapped=0)
        if limit := machine.impossible(need, machine.limits(cpu)):
            raise StageError(
                f"{checkpoint.folder} takes {need.memory / GIB:,.1f} GiB of memory even layer by layer, and "
                f"{limit.name} has {limit.total / GIB:,.1f} GiB; use a larger machine, a smaller measure.batch_size or "
                "fewer prompts"
            )
        return cpu
    memory = layered.largest_part + machine.held_bytes(sizes, work) + machine.batch_bytes(sizes, work)
    return cpu if machine.too_small(Need(memory, mapped=0), machine.limits(layered.device)) else layered.device


def sizes_of(model: PreTrainedModel) -> Sizes:
    """What decides how much memory a batch takes."""
    text = model.config.get_text_config()
    standard = {name: getattr(text, name) for name in text.attribute_map}  # older types have names of their own
    return Sizes.of(text.to_dict() | standard, model.dtype.itemsize)
