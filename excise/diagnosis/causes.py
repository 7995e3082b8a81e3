"""Whether a direction causes refusal: ablating it everywhere and adding it to the stream, as in Arditi et al. 2024
(arXiv:2406.11717, sections 2.4 and 3), and patching what single writers add along it, as in causal tracing."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from excise.edit.planning.projectors import Projector
from excise.inference.forward import place_of
from excise.inference.loading.models import decoder_layers
from excise.residual.contributions import Component, Key, Trace, Write
from excise.trials.changes import OnModule, Patched, Trial
from excise.trials.refusal import Outcome, Questions
from schemas.diagnosis import Cause
from schemas.directions import MeasurementStatistics
from schemas.model import WriterRole

ENOUGH = 0.9
"""Share of a writer's effect that the named part of it must have."""


def ablating(model: PreTrainedModel, watched: Sequence[Component], direction: Tensor) -> Trial:
    """Embeddings and all writes lose a direction, a unit vector ``[hidden]``."""
    without = Projector(direction[:, None], direction[:, None]).remove
    key = direction.numpy().tobytes()
    last = {component.last: component.layer for component in watched}
    changes = [OnModule(layer, module, "output", key, without) for module, layer in last.items()]
    return Trial((_on_stream(model, 0, key, without), *changes))


def adding(model: PreTrainedModel, measurement: int, vector: Tensor) -> Trial:
    """A vector ``[hidden]`` is added to the stream at a measurement, at every token."""

    def add(stream: Tensor) -> Tensor:
        return stream + vector.to(stream.device, stream.dtype)

    return Trial((_on_stream(model, measurement, vector.numpy().tobytes(), add),))


def _on_stream(model: PreTrainedModel, measurement: int, key: bytes, change: Callable[[Tensor], Tensor]) -> OnModule:
    layer, side = place_of(model, measurement)
    return OnModule(layer, decoder_layers(model)[layer], side, key, change)


def most_causal(without: Mapping[int, Outcome]) -> list[int]:
    """Measurements by remaining refusal without their direction, in whole prompts, then by KL; only finite outcomes."""

    def rank(measurement: int) -> tuple[int, float]:
        outcome = without[measurement]
        return round(outcome.remaining * len(outcome.harmful.log_odds)), float(outcome.kl.mean())

    return sorted((measurement for measurement, outcome in without.items() if outcome.is_finite), key=rank)


def explain_causes(
    statistics: Sequence[MeasurementStatistics], without: Mapping[int, Outcome], added: Mapping[int, Outcome]
) -> list[Cause]:
    """By measurement, refusal without its direction, and with it added to harmless prompts."""
    rows = []
    for row in statistics:
        outcomes = without.get(row.measurement), added.get(row.measurement)
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
        return self.effects([sites])[0]

    def effects(self, several: Sequence[Collection[Site]]) -> list[float]:
        """The same of several sets of sites, tried together."""
        odds = self.questions.ask_all_harmful([self._trial(sites) for sites in several])
        return [float((each - self.questions.unedited.harmful.log_odds).mean()) for each in odds]

    def _trial(self, sites: Collection[Site]) -> Trial:
        changes = []
        for layer in sorted({layer for layer, _, _ in sites}):
            here = sorted((site for site in sites if site[0] == layer), key=str)
            sources = {(layer, role) for _, role, _ in here}
            watched = tuple(component for component in self.watched if component.source in sources)
            changes.append(Patched(layer, tuple(here), watched, self.direction, partial(self._patch, here)))
        return Trial(tuple(changes))

    def _patch(self, sites: Sequence[Site], component: Component, write: Write) -> Tensor:
        change = torch.zeros_like(write.projected)
        for layer, role, expert in sites:
            if (layer, role) == component.source:
                change += self.harmless_means[component.key, expert] - write.of_expert(expert)
        return change

    def smallest(self, sites: Sequence[Site], whole: float) -> list[Site]:
        """A small set of sites with nearly the `whole` effect: each in turn is left out if the others have enough.
        Single effects would not do, because sites that can replace each other have hardly any."""
        kept = list(sites)
        for site in sites:
            fewer = [other for other in kept if other != site]
            if fewer and self.effect(fewer) <= ENOUGH * whole:
                kept = fewer
        return kept
