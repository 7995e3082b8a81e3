"""Whether a direction causes refusal: ablating it everywhere and adding it to the stream, as in Arditi et al. 2024
(arXiv:2406.11717, sections 2.4 and 3), and patching what single writers add along it, as in causal tracing."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from excise.edit.planning.projectors import Projector
from excise.inference.forward import place_of
from excise.inference.loading.models import decoder_layers
from excise.residual.contributions import Component, Trace, Write
from excise.trials.changes import OnModule, Patched, Trial
from excise.trials.questions import Asked, Questions
from excise.trials.refusal import Beginnings, Outcome
from schemas.diagnosis import Cause
from schemas.directions import MeasurementStatistics
from schemas.model import WriterRole


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
    """Measurements by how well their direction's removal does: those that were asked all prompts first; only finite
    outcomes."""
    finite = [measurement for measurement, outcome in without.items() if outcome.is_finite]
    return sorted(finite, key=lambda measurement: (not without[measurement].is_whole, without[measurement].rank))


def explain_causes(
    statistics: Sequence[MeasurementStatistics], without: Mapping[int, Outcome], added: Mapping[int, Beginnings]
) -> list[Cause]:
    """By measurement, refusal without its direction, and with it added to harmless prompts."""
    rows = []
    for row in statistics:
        outcome, begun = without.get(row.measurement), added.get(row.measurement)
        ablated = outcome.answers() if outcome is not None and outcome.is_finite else None
        with_it = begun.added() if begun is not None and bool(begun.log_odds.isfinite().all()) else None
        rows.append(Cause(measurement=row.measurement, reason=row.reason, ablated=ablated, added=with_it))
    return rows


Site = tuple[int, WriterRole, int | None]
"""A layer, the role of a writer, and the index of one of its experts; None for the whole writer."""


class Patches:
    """Sets of sites in which what is written along a direction is replaced by its mean on harmless prompts, and the
    effect of each on the refusal of harmful ones."""

    def __init__(self, questions: Questions, watched: Sequence[Component], direction: Tensor, harmless: Trace) -> None:
        """The trace may be filled later, but in each layer before harmful prompts pass through it."""
        self._questions, self._watched, self._direction, self._harmless = questions, watched, direction, harmless
        self._effects: dict[frozenset[Site], float] = {}
        self._waiting: tuple[list[frozenset[Site]], Asked] = [], Asked([])

    @property
    def sites(self) -> list[Site]:
        """Every writer of every layer."""
        return [(*source, None) for source in dict.fromkeys(component.source for component in self._watched)]

    def ask(self, several: Iterable[Collection[Site]]) -> Asked:
        """What has to be asked to know the effects of these sets."""
        new = [sites for sites in dict.fromkeys(map(frozenset, several)) if sites and sites not in self._effects]
        self._waiting = new, Asked([self._trial(sites) for sites in new], ("harmful",))
        return self._waiting[1]

    def answered(self) -> None:
        """Take what was asked."""
        sets, asked = self._waiting
        base = self._questions.unedited.harmful.log_odds
        if sets:
            for sites, begun in zip(sets, self._questions.begun(asked, "harmful"), strict=True):
                self._effects[sites] = float((begun.log_odds - base).mean())
        self._waiting = [], Asked([])

    def effect(self, sites: Iterable[Site]) -> float:
        """Change of the mean log-odds of refusing harmful prompts, in nats; negative if the sites cause refusal. They
        have to have been asked."""
        return self._effects[frozenset(sites)]

    def _trial(self, sites: Collection[Site]) -> Trial:
        changes = []
        for layer in sorted({layer for layer, _, _ in sites}):
            here = sorted((site for site in sites if site[0] == layer), key=str)
            sources = {(layer, role) for _, role, _ in here}
            watched = tuple(component for component in self._watched if component.source in sources)
            changes.append(Patched(layer, tuple(here), watched, self._direction, partial(self._patch, here)))
        return Trial(tuple(changes))

    def _patch(self, sites: Sequence[Site], component: Component, write: Write) -> Tensor:
        change = torch.zeros_like(write.projected)
        for layer, role, expert in sites:
            if (layer, role) == component.source:
                mean = float(self._harmless.parts[component.key].of_expert(expert).mean())
                change += mean - write.of_expert(expert)
        return change


def nested(sites: Iterable[Site], weight: Callable[[Site], float]) -> list[list[Site]]:
    """The weightiest site, the two weightiest, and so on."""
    ordered = sorted(sites, key=lambda site: (-weight(site), str(site)))
    return [ordered[: count + 1] for count in range(len(ordered))]
