"""What the report says of a diagnosis and of the simulated rules: which rows, and in which order. The words are the
template's."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any, Generic, TypeVar

from ruamel.yaml import YAML

from schemas.diagnosis import (
    Answers,
    Cause,
    Diagnosis,
    ExpertEffect,
    RangeTrial,
    RoleEffect,
    RouterReading,
    WeightsSplit,
    WriterEffect,
)
from schemas.params.ablate import Ablate
from schemas.simulation import ScaleTrial, Simulation

T = TypeVar("T")

MOST_ROWS = 8
"""Tables of large models show the largest rows, and say how many they leave out: a report must fit into a comment."""

MOST_WORDS = 8
"""So many words with which refusals begin, and so many named experts, are written out."""


@dataclass(frozen=True)
class Rows(Generic[T]):
    """What a table shows, and how many rows it leaves out."""

    shown: list[T]
    left_out: int


@dataclass(frozen=True)
class LayerWrite:
    """What all writers of one layer add to the difference, and what it is after that layer."""

    layer: int
    written: float
    after: float


@dataclass(frozen=True)
class Use:
    """How many prompts of either side are given to one expert."""

    layer: int
    expert: int
    harmful: int
    harmless: int
    log_odds: float


@dataclass(frozen=True)
class Split:
    """What routed experts of all layers write, as far as weights and outputs can be told apart."""

    difference: float
    by_weights: float
    by_outputs: float
    layers: Rows[WeightsSplit]
    inseparable: list[int]


@dataclass(frozen=True)
class Findings:
    """A diagnosis as the report tells it."""

    cause: RoleEffect
    """The kind of writer that is named."""
    adds_most: RoleEffect
    roles: list[RoleEffect]
    strongest: WriterEffect
    """Of single layers."""
    largest: WriterEffect
    """Of single layers, that which adds most along the direction."""
    writers: Rows[WriterEffect]
    experts: Rows[ExpertEffect]
    experts_tried: int
    shares: list[RouterReading]
    """Routers whose logits differ between the two sides, the lowest share through the direction first."""
    distances: list[RouterReading]
    changed: list[RouterReading]
    unblinded: list[int]
    """Layers whose router cannot be blinded to the direction."""
    uses: Rows[Use]
    split: Split | None
    """None where no layer's weights can be told from its outputs."""
    layers: Rows[LayerWrite]
    ranges_tried: int
    removing: list[RangeTrial]
    smallest: RangeTrial | None
    """Of the ranges that remove refusal, the fewest layers, at the lowest KL."""
    cheapest: RangeTrial | None
    """That at the lowest KL."""
    least: RangeTrial | None
    """Of all ranges, that with the least refusal, at the lowest KL."""
    scale: float | None
    """That of all current rules; None where they have several."""
    scales: list[ScaleTrial]
    """Those at which the model answers in numbers."""
    as_it_is: ScaleTrial | None
    """Of these, that of the rules as they are."""
    broken: list[float]
    """Scales at which its logits are NaN or infinite."""
    main: Cause
    """Of the explained direction."""
    undirected: list[int]
    """Measurements that have no direction."""
    causes: Rows[Cause]
    rules: str | None
    """Those that are recommended, as YAML to paste under `ablate:`; None where none are."""
    recommends_current: bool


def findings(diagnosis: Diagnosis, simulation: Simulation, ablate: Ablate) -> Findings:
    """What to tell of a diagnosis.

    Args:
        simulation: of the rules of `ablate`, the section of params.yaml that it was made with.
    """
    tried = [row for row in diagnosis.experts if row.effect is not None]
    ranges = [(row, row.answers) for row in diagnosis.ranges if row.answers is not None]
    removing = [(row, found) for row, found in ranges if found.remaining <= diagnosis.limit]
    scales = {rule.scale for rule in ablate.rules}
    rules = diagnosis.recommendation.rules if diagnosis.recommendation is not None else None
    return Findings(
        cause=next(row for row in diagnosis.roles if row.role == diagnosis.named.role),
        adds_most=max(diagnosis.roles, key=lambda row: row.difference),
        roles=sorted(diagnosis.roles, key=lambda row: row.effect),
        strongest=min(diagnosis.writers, key=lambda row: row.effect),
        largest=max(diagnosis.writers, key=lambda row: row.difference),
        writers=_most(diagnosis.writers, lambda row: abs(row.effect), lambda row: row.effect),
        experts=_most(tried, lambda row: abs(row.effect or 0.0), lambda row: row.effect),
        experts_tried=len(tried),
        shares=sorted((row for row in diagnosis.routers if row.share is not None), key=lambda row: row.share or 0.0),
        distances=sorted(diagnosis.routers, key=lambda row: row.distance),
        changed=sorted(
            (row for row in diagnosis.routers if row.changed is not None), key=lambda row: row.changed or 0.0
        ),
        unblinded=[row.layer for row in diagnosis.routers if row.changed is None],
        uses=_most(_uses(diagnosis.routers), lambda use: abs(use.log_odds), lambda use: -use.log_odds),
        split=_split(diagnosis.weights),
        layers=_most(_layers(diagnosis), lambda row: abs(row.written), lambda row: row.layer),
        ranges_tried=len(ranges),
        removing=[row for row, _ in removing],
        smallest=_first(removing, lambda row, found: (row.last - row.first, found.kl)),
        cheapest=_first(removing, lambda row, found: (found.kl, row.last - row.first)),
        least=_first(ranges, lambda _, found: (found.remaining, found.kl)),
        scale=ablate.rules[0].scale if len(scales) == 1 else None,
        scales=[row for row in simulation.scales if row.answers is not None],
        as_it_is=next((row for row in simulation.scales if row.scale == 1 and row.answers is not None), None),
        broken=[row.scale for row in simulation.scales if row.answers is None],
        main=next(row for row in diagnosis.causes if row.measurement == diagnosis.measurement),
        undirected=[row.measurement for row in diagnosis.causes if row.reason is not None],
        causes=_causes(diagnosis),
        rules=rules_as_yaml(rules) if rules is not None else None,
        recommends_current=rules is not None and Ablate.model_validate({"rules": rules}).rules == ablate.rules,
    )


def rules_as_yaml(rules: Sequence[dict[str, Any]]) -> str:
    """Rules as they are pasted under `ablate:` of params.yaml."""
    return as_yaml({"ablate": {"rules": list(rules)}}).removeprefix("ablate:\n")


def as_yaml(document: dict[str, Any]) -> str:
    """A part of params.yaml as people write it."""
    yaml = YAML(typ="safe", pure=True)
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.default_flow_style = None
    yaml.width = 100
    yaml.indent(mapping=2, sequence=4, offset=2)
    text = StringIO()
    yaml.dump(document, text)
    return text.getvalue()


def _most(rows: Iterable[T], size: Callable[[T], float], order: Callable[[T], Any]) -> Rows[T]:
    """The largest rows, in an order."""
    ranked = sorted(rows, key=size, reverse=True)
    return Rows(sorted(ranked[:MOST_ROWS], key=order), max(0, len(ranked) - MOST_ROWS))


def _first(
    ranges: Iterable[tuple[RangeTrial, Answers]], rank: Callable[[RangeTrial, Answers], tuple[float, float]]
) -> RangeTrial | None:
    return min(ranges, key=lambda one: rank(*one), default=(None, None))[0]


def _uses(routers: Iterable[RouterReading]) -> list[Use]:
    return [
        Use(row.layer, expert, harmful, harmless, odds)
        for row in routers
        for expert, (harmful, harmless, odds) in enumerate(
            zip(row.harmful_use, row.harmless_use, row.log_odds, strict=True)
        )
    ]


def _split(rows: Sequence[WeightsSplit]) -> Split | None:
    separable = [row for row in rows if row.by_weights is not None]
    if not separable:
        return None
    return Split(
        difference=sum(row.difference for row in separable),
        by_weights=sum(row.by_weights or 0.0 for row in separable),
        by_outputs=sum(row.by_outputs or 0.0 for row in separable),
        layers=_most(separable, lambda row: abs(row.difference), lambda row: row.layer),
        inseparable=[row.layer for row in rows if row.by_weights is None],
    )


def _layers(diagnosis: Diagnosis) -> list[LayerWrite]:
    after = {point.measurement - 1: point.difference for point in diagnosis.stream}
    return [
        LayerWrite(layer, sum(row.difference for row in diagnosis.writers if row.layer == layer), after[layer])
        for layer in sorted({row.layer for row in diagnosis.writers})
    ]


def _causes(diagnosis: Diagnosis) -> Rows[Cause]:
    """Those without which least is refused, at the lowest KL; and the one that is explained."""
    there = [row for row in diagnosis.causes if row.ablated is not None and row.added is not None]

    def rank(row: Cause) -> tuple[bool, float, float]:
        assert row.ablated is not None
        return row.measurement != diagnosis.measurement, row.ablated.remaining, row.ablated.kl

    shown = sorted(there, key=rank)[:MOST_ROWS]
    return Rows(sorted(shown, key=lambda row: row.measurement), len(there) - len(shown))
