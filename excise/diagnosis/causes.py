"""Is it the cause? What the model answers with a direction taken out, put in, or left unwritten by one writer.
Ablating a direction everywhere and adding it to the stream are Arditi et al. 2024's (arXiv:2406.11717, sections 2.4 and
3). A writer's own part is patched as in causal tracing: at the last token of a prompt, what it writes along the
direction is replaced by what it writes there on harmless prompts, on average."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from excise.diagnosis.contributions import Component, Trace, Write, watch_writes
from excise.edit.planning.projectors import Directions, Projector
from excise.inference.forward import Batch, change_stream, on_output
from excise.trials.refusal import Outcome, Questions
from schemas.diagnosis import Cause
from schemas.directions import MeasurementStatistics
from schemas.model import WriterRole

ENOUGH = 0.9
"""What share of a writer's effect its smallest part must have that is named."""


def ablated(questions: Questions, watched: Sequence[Component], direction: Tensor) -> Outcome:
    """What the model answers when nothing holds a direction, a unit vector ``[hidden]``: embeddings and whatever is
    written lose it."""
    without = Projector(direction[:, None], direction[:, None]).remove

    def watch(_batch: Batch, undo: ExitStack) -> None:
        change_stream(questions.model, 0, without, undo)
        for module in dict.fromkeys(component.last for component in watched):
            on_output(module, without, undo)

    return questions.ask(watch)


def added(questions: Questions, measurement: int, vector: Tensor) -> Outcome:
    """What the model answers when a vector ``[hidden]`` is added to the stream at a measurement, at every token."""

    def add(stream: Tensor) -> Tensor:
        return stream + vector.to(stream.device, stream.dtype)

    return questions.ask(lambda _batch, undo: change_stream(questions.model, measurement, add, undo))


def most_causal(without: Mapping[int, Outcome]) -> list[int]:
    """Measurements without whose direction the model answers in numbers: the fewest refusals first, in whole prompts,
    and of equals the lowest KL."""

    def rank(measurement: int) -> tuple[int, float]:
        outcome = without[measurement]
        return round(outcome.remaining * len(outcome.harmful)), float(outcome.kl.mean())

    return sorted((measurement for measurement, outcome in without.items() if outcome.is_finite), key=rank)


def explain_causes(
    questions: Questions,
    directions: Directions,
    statistics: Sequence[MeasurementStatistics],
    without: Mapping[int, Outcome],
) -> list[Cause]:
    """Whether each direction is the cause: refusal without it, and with it added to harmless prompts."""
    rows = []
    for row in statistics:
        removed, put_in = without.get(row.measurement), None
        if removed is not None:
            put_in = added(questions, row.measurement, directions.unit[row.measurement] * (row.norm or 0.0))
        answers = [one.answers() if one is not None and one.is_finite else None for one in (removed, put_in)]
        rows.append(Cause(measurement=row.measurement, reason=row.reason, ablated=answers[0], added=answers[1]))
    return rows


Site = tuple[int, WriterRole, int | None]
"""Where something is patched: a layer, what writes there, and which of its experts; None for the whole writer."""


class ActivationPatching:
    """Sites made to write along a direction what they write on harmless prompts, on average."""

    def __init__(self, questions: Questions, watched: Sequence[Component], direction: Tensor, harmless: Trace) -> None:
        self.questions, self.watched, self.direction = questions, watched, direction
        self.usual: dict[Site, float] = {}
        for (layer, role), write in harmless.writes.items():
            self.usual[layer, role, None] = float(write.projected.mean())
            if write.experts is not None:
                for expert, mean in enumerate(write.experts.projected.mean(0).tolist()):
                    self.usual[layer, role, expert] = mean

    def effect(self, sites: Collection[Site]) -> float:
        """By how much the mean log-odds of refusing harmful prompts change, nats; below 0 where the sites cause it."""

        def patch(component: Component, write: Write) -> Tensor | None:
            change = torch.zeros_like(write.projected)
            for layer, role, expert in sites:
                if (layer, role) == component.source:
                    change += self.usual[layer, role, expert] - write.of_expert(expert)
            return change

        concerned = {(layer, role) for layer, role, _ in sites}
        watched = [component for component in self.watched if component.source in concerned]

        odds = self.questions.ask_harmful(
            lambda batch, undo: watch_writes(watched, self.direction, {}, batch, patch, undo)
        )
        return float((odds - self.questions.unedited.harmful).mean())

    def smallest(self, sites: Sequence[Site], whole: float) -> list[Site]:
        """The sites without which nearly all of the effect is lost. One after another is left out for as long as the
        others together keep enough of it: sites that stand in for each other have hardly an effect alone.

        Args:
            sites: those that can best be done without first.
            whole: the effect of all of them together.
        """
        kept = list(sites)
        for site in sites:
            fewer = [other for other in kept if other != site]
            if fewer and self.effect(fewer) <= ENOUGH * whole:
                kept = fewer
        return kept
