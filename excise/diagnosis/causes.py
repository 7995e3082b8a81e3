"""Is it the cause? What the model answers with a direction taken out, put in, or left unwritten by one writer.

Ablating a direction everywhere and adding it to the stream are Arditi et al. 2024's (arXiv:2406.11717, sections 2.4 and
3). A writer's own part is patched as in causal tracing: at the last token of a prompt, what it writes along the
direction is replaced by what it writes there on harmless prompts, on average.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from excise.diagnosis.contributions import Component, Source, Trace, Write, watch_writes
from excise.inference.forward import Batch
from excise.inference.models import decoder_layers
from excise.trials.refusal import Outcome, Questions
from schemas.layout import WriterRole

ENOUGH = 0.9
"""What share of a writer's effect its smallest part must have that is named."""


def ablated(questions: Questions, watched: Sequence[Component], direction: Tensor) -> Outcome:
    """What the model answers when nothing holds the direction: embeddings and whatever is written lose it.

    Args:
        direction: ``[hidden]``, a unit vector.
    """

    def without(stream: Tensor) -> Tensor:
        exact, unit = stream.double(), direction.to(stream.device)
        return (exact - (exact @ unit)[..., None] * unit).to(stream.dtype)

    def watch(_batch: Batch, undo: ExitStack) -> None:
        _change_stream(questions, 0, without, undo)
        for module in dict.fromkeys(component.last for component in watched):
            undo.callback(module.register_forward_hook(lambda _module, _args, output: without(output)).remove)

    return questions.ask(watch)


def added(questions: Questions, measurement: int, vector: Tensor) -> Outcome:
    """What the model answers when a vector ``[hidden]`` is added to the stream at a measurement, at every token."""

    def watch(_batch: Batch, undo: ExitStack) -> None:
        _change_stream(questions, measurement, lambda stream: stream + vector.to(stream.device, stream.dtype), undo)

    return questions.ask(watch)


def _change_stream(questions: Questions, measurement: int, change: Callable[[Tensor], Tensor], undo: ExitStack) -> None:
    layers = decoder_layers(questions.model)

    def entering(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    def leaving(_layer: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    if measurement < len(layers):
        undo.callback(layers[measurement].register_forward_pre_hook(entering, with_kwargs=True).remove)
    else:
        undo.callback(layers[-1].register_forward_hook(leaving).remove)


Part = tuple[int, WriterRole, int | None]
"""A layer, what writes there, and which of its experts; None for the whole writer."""


class Patches:
    """Parts of writers made to write along a direction what they write on harmless prompts, on average."""

    def __init__(self, questions: Questions, watched: Sequence[Component], direction: Tensor, harmless: Trace) -> None:
        self.questions, self.watched, self.direction = questions, watched, direction
        self.usual: dict[Part, float] = {}
        for (layer, role), write in harmless.writes.items():
            self.usual[layer, role, None] = float(write.projected.mean())
            if write.experts is not None:
                for expert, mean in enumerate(write.experts.projected.mean(0).tolist()):
                    self.usual[layer, role, expert] = mean

    def effect(self, parts: Collection[Part]) -> float:
        """By how much the mean log-odds of refusing harmful prompts change, nats; below 0 where the parts cause it."""

        def patch(component: Component, write: Write) -> Tensor | None:
            change = torch.zeros_like(write.projected)
            for layer, role, expert in parts:
                if (layer, role) == component.source:
                    change += self.usual[layer, role, expert] - write.part(expert)
            return change

        concerned: set[Source] = {(layer, role) for layer, role, _ in parts}
        watched = [component for component in self.watched if component.source in concerned]

        def watch(batch: Batch, undo: ExitStack) -> None:
            watch_writes(watched, self.direction, {}, batch, patch, undo)

        return float((self.questions.ask_harmful(watch) - self.questions.base.harmful).mean())

    def smallest(self, parts: Sequence[Part], whole: float) -> list[Part]:
        """The parts without which nearly all of the effect is lost.

        One after another is left out for as long as the others together keep enough of it: parts that stand in for each
        other have hardly an effect alone.

        Args:
            parts: those that can best be done without first.
            whole: the effect of all of them together.
        """
        kept = list(parts)
        for part in parts:
            fewer = [other for other in kept if other != part]
            if fewer and self.effect(fewer) <= ENOUGH * whole:
                kept = fewer
        return kept
