"""Whether a direction causes refusal: ablating it everywhere and adding it to the stream, as in Arditi et al. 2024
(arXiv:2406.11717, sections 2.4 and 3), and patching what single writers add along it, as in causal tracing."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from excise.edit.planning.projectors import Directions, Projector
from excise.inference.forward import Batch, change_stream, on_output
from excise.residual.contributions import Component, Key, Trace, Write, watch_writes
from excise.trials.refusal import Outcome, Questions
from schemas.diagnosis import Cause
from schemas.directions import MeasurementStatistics
from schemas.model import WriterRole

ENOUGH = 0.9
"""Share of a writer's effect that the named part of it must have."""


def ablated(questions: Questions, watched: Sequence[Component], direction: Tensor) -> Outcome:
    """The model's answers when embeddings and all writes lose a direction, a unit vector ``[hidden]``."""
    without = Projector(direction[:, None], direction[:, None]).remove

    def watch(_batch: Batch, undo: ExitStack) -> None:
        change_stream(questions.model, 0, without, undo)
        for module in dict.fromkeys(component.last for component in watched):
            on_output(module, without, undo)

    return questions.ask(watch)


def added(questions: Questions, measurement: int, vector: Tensor) -> Outcome:
    """The model's answers when a vector ``[hidden]`` is added to the stream at a measurement, at every token."""

    def add(stream: Tensor) -> Tensor:
        return stream + vector.to(stream.device, stream.dtype)

    return questions.ask(lambda _batch, undo: change_stream(questions.model, measurement, add, undo))


def most_causal(without: Mapping[int, Outcome]) -> list[int]:
    """Measurements by remaining refusal without their direction, in whole prompts, then by KL; only finite outcomes."""

    def rank(measurement: int) -> tuple[int, float]:
        outcome = without[measurement]
        return round(outcome.remaining * len(outcome.harmful.log_odds)), float(outcome.kl.mean())

    return sorted((measurement for measurement, outcome in without.items() if outcome.is_finite), key=rank)


def explain_causes(
    questions: Questions,
    directions: Directions,
    statistics: Sequence[MeasurementStatistics],
    without: Mapping[int, Outcome],
) -> list[Cause]:
    """Refusal without each direction, and with it added to harmless prompts."""
    rows = []
    for row in statistics:
        outcomes: list[Outcome | None] = [None, None]
        if (removed := without.get(row.measurement)) is not None:
            vector = directions.unit[row.measurement] * (row.norm or 0.0)
            outcomes = [removed, added(questions, row.measurement, vector)]
        answers = [outcome.answers() if outcome is not None and outcome.is_finite else None for outcome in outcomes]
        rows.append(Cause(measurement=row.measurement, reason=row.reason, ablated=answers[0], added=answers[1]))
    return rows


Site = tuple[int, WriterRole, int | None]
"""A layer, the role of a writer, and the index of one of its experts; None for the whole writer."""


class ActivationPatching:
    """Replaces what sites write along a direction by their mean on harmless prompts."""

    def __init__(self, questions: Questions, watched: Sequence[Component], direction: Tensor, harmless: Trace) -> None:
        self.questions, self.watched, self.direction = questions, watched, direction
        self.harmless_means: dict[tuple[Key, int | None], float] = {}
        for key, write in harmless.parts.items():
            means = [(None, float(write.projected.mean())), *enumerate(write.experts.mean(0).tolist())]
            self.harmless_means |= {(key, expert): mean for expert, mean in means}

    def effect(self, sites: Collection[Site]) -> float:
        """Change of the mean log-odds of refusing harmful prompts, in nats; negative if the sites cause refusal."""

        def patch(component: Component, write: Write) -> Tensor | None:
            change = torch.zeros_like(write.projected)
            for layer, role, expert in sites:
                if (layer, role) == component.source:
                    change += self.harmless_means[component.key, expert] - write.of_expert(expert)
            return change

        sources = {(layer, role) for layer, role, _ in sites}
        watched = [component for component in self.watched if component.source in sources]
        odds = self.questions.ask_harmful(
            lambda batch, undo: watch_writes(watched, self.direction, {}, batch, patch, undo)
        )
        return float((odds - self.questions.unedited.harmful.log_odds).mean())

    def smallest(self, sites: Sequence[Site], whole: float) -> list[Site]:
        """A small set of sites with nearly the `whole` effect: each in turn is left out if the others have enough.
        Single effects would not do, because sites that can replace each other have hardly any."""
        kept = list(sites)
        for site in sites:
            fewer = [other for other in kept if other != site]
            if fewer and self.effect(fewer) <= ENOUGH * whole:
                kept = fewer
        return kept
