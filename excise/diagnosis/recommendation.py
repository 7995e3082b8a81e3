"""The edit to try next: of many simulated ones, that which removes refusal at the lowest KL."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from excise.trials.bench import Bench, with_rules
from excise.trials.refusal import Outcome
from schemas.params.ablate import Ablate
from schemas.text import layers_as_written

LIMIT = 0.05
"""Refusal counts as removed when no larger share of harmful prompts is refused, nor with a larger probability."""

MEASUREMENTS = 3
"""How many measurements are tried: those whose direction is the cause at the lowest KL."""

KEPT = 3
"""How many of the best are tried further: with fewer writers, and at lower scales."""

SCALES = (0.5, 0.75)
"""At which scales the best are tried too."""

Z = 1.96
"""Quantile of the normal distribution for an interval of 95 %."""

Rules = list[dict[str, Any]]


@dataclass(frozen=True)
class Tried:
    """One edit and what it does."""

    rules: Rules
    outcome: Outcome

    @property
    def removes(self) -> bool:
        """Whether refusal is removed."""
        return self.outcome.remaining <= LIMIT

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Lower is better: refusal removed, at the lowest KL; or else the least refusal."""
        kl = float(self.outcome.kl.mean())
        return (False, kl, 0.0) if self.removes else (True, self.outcome.remaining, kl)

    def is_like(self, best: "Tried") -> bool:
        """Whether its KL cannot be told from that of the best, prompt by prompt: a paired normal 95 % interval."""
        more = self.outcome.kl - best.outcome.kl
        return float(more.mean()) <= Z * float(more.std()) / math.sqrt(len(more))


def recommend(
    bench: Bench,
    ablate: Ablate,
    writers: Sequence[str],
    causes: Mapping[int, Outcome],
    spans: Sequence[tuple[int, int]],
    named: Rules,
) -> tuple[Tried, list[Tried]]:
    """The best edit, and all that were tried.

    Args:
        ablate: method and the rest, as params.yaml has them; its rules are tried too.
        writers: every kind of writer that the model has.
        causes: by measurement, what the model answers with the direction ablated everywhere; in numbers.
        spans: first and last layer of each range.
        named: rules that edit only the writer whose part is the cause.
    """
    tried: list[Tried] = []

    def attempt(rules: Rules) -> None:
        if any(rules == other.rules for other in tried):
            return
        outcome = bench.attempt(with_rules(ablate, rules))
        if outcome is not None:
            tried.append(Tried(rules, outcome))

    current = bench.attempt(ablate)
    if current is not None:
        tried.append(Tried([as_written(rule.model_dump(mode="json")) for rule in ablate.rules], current))
    for measurement in _most_causal(causes):
        for first, last in spans:
            attempt([range_rule(first, last, measurement, writers)])
    for best in _best(tried):
        for fewer in _fewer(writers):
            attempt([{**rule, "targets": list(fewer)} for rule in best.rules])
    for measurement in _most_causal(causes):
        attempt([{**rule, "measurement": measurement} for rule in named])
    for best in _best(tried):
        for scale in SCALES:
            attempt([{**rule, "scale": scale * rule["scale"]} for rule in best.rules])
    return min(tried, key=lambda one: one.rank), tried


def _best(tried: Sequence[Tried]) -> list[Tried]:
    return sorted(tried, key=lambda one: one.rank)[:KEPT]


def _most_causal(causes: Mapping[int, Outcome]) -> list[int]:
    ranked = sorted(causes, key=lambda measurement: Tried([], causes[measurement]).rank)
    return ranked[:MEASUREMENTS]


def range_rule(first: int, last: int, measurement: float, targets: Sequence[str]) -> dict[str, Any]:
    """The rule that edits a range of neighbouring layers, at scale 1."""
    layers = layers_as_written(range(first, last + 1))
    return {"layers": layers, "measurement": measurement, "scale": 1.0, "targets": list(targets)}


def _fewer(writers: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Each kind of writer alone, and all but each."""
    if len(writers) > 1:
        yield from ((writer,) for writer in writers)
    if len(writers) > 2:
        yield from (tuple(other for other in writers if other != writer) for writer in writers)


def as_written(rule: Mapping[str, Any]) -> dict[str, Any]:
    """A rule as params.yaml would write it, without what is not set."""
    layers = rule["layers"]
    written = {**rule, "layers": layers if isinstance(layers, str) else layers_as_written(layers)}
    return {key: value for key, value in written.items() if value is not None}
