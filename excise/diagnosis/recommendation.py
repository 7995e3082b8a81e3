"""The edit to try next: of many simulated edits, the one that removes refusal at the lowest KL."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from excise.diagnosis.writers import Contrast
from excise.trials.bench import Bench, layer_ranges, with_rules
from excise.trials.refusal import Outcome
from schemas.basis.text import layers_as_written
from schemas.diagnosis import NamedWriter, RangeTrial, Recommendation
from schemas.params.ablate import Ablate

LIMIT = 0.05
"""Refusal is removed where both the share of harmful prompts refused and the mean probability are at most this."""

MEASUREMENTS = 3
"""How many of the most causal measurements are tried."""

KEPT = 3
"""How many of the best edits are varied further: with fewer writers, and at lower scales."""

SCALES = (0.5, 0.75)
"""Lower scales at which the best edits are also tried."""

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


def try_edits(
    bench: Bench, ablate: Ablate, writers: Sequence[str], measurements: Sequence[int], named: Rules
) -> list[Tried]:
    """Every range of layers, the best of these with fewer writers, the named writer only, and the best of all at lower
    scales; none twice, and none that the model does not take.

    Args:
        ablate: method and the rest; its rules are not tried.
        writers: every kind of writer that the model has.
        measurements: that explained first, and others whose direction is the cause; the first few are tried.
        named: rules that edit only the writer whose part is the cause.
    """
    tried: list[Tried] = []
    alone = [[writer] for writer in writers] if len(writers) > 1 else []
    all_but = [[other for other in writers if other != writer] for writer in writers] if len(writers) > 2 else []

    def attempt(rules: Rules) -> None:
        if any(rules == other.rules for other in tried):
            return
        outcome = bench.attempt(with_rules(ablate, rules))
        if outcome is not None:
            tried.append(Tried(rules, outcome))

    for measurement in measurements[:MEASUREMENTS]:
        for first, last in layer_ranges(bench.base.layout.layers):
            attempt([range_rule(first, last, measurement, writers)])
    for best in _best(tried):
        for fewer in alone + all_but:
            attempt([{**rule, "targets": fewer} for rule in best.rules])
    for measurement in measurements[:MEASUREMENTS]:
        attempt([{**rule, "measurement": measurement} for rule in named])
    for best in _best(tried):
        for scale in SCALES:
            attempt([{**rule, "scale": scale * rule["scale"]} for rule in best.rules])
    return tried


def explain_ranges(
    tried: Sequence[Tried], contrast: Contrast, layers: int, measurement: int, writers: Sequence[str]
) -> list[RangeTrial]:
    """Layer coverage: the edits that take the direction out of one range of layers."""
    rows = []
    for first, last in layer_ranges(layers):
        rules = [range_rule(first, last, measurement, writers)]
        answers = next((one.outcome.answers() for one in tried if one.rules == rules), None)
        written = sum(contrast.difference(site) for site in contrast.sites if first <= site[0] <= last)
        rows.append(RangeTrial(first=first, last=last, written=written, answers=answers))
    return rows


def recommend(tried: Sequence[Tried]) -> Recommendation | None:
    """The best edit of those that were tried; None where the model took none."""
    if not tried:
        return None
    best = _best(tried)[0]
    return Recommendation(
        rules=best.rules,
        removes=best.removes,
        answers=best.outcome.answers(),
        tried=len(tried),
        alike=sum(one is not best and one.removes and one.is_like(best) for one in tried),
    )


def _best(tried: Sequence[Tried]) -> list[Tried]:
    return sorted(tried, key=lambda one: one.rank)[:KEPT]


def range_rule(first: int, last: int, measurement: int, writers: Sequence[str]) -> dict[str, Any]:
    """The rule that edits a range of neighbouring layers, at scale 1."""
    layers = layers_as_written(range(first, last + 1))
    return {"layers": layers, "measurement": measurement, "scale": 1.0, "targets": list(writers)}


def rules_of(named: NamedWriter, measurement: int) -> Rules:
    """Rules that edit what is named, and nothing else."""
    common = {"measurement": measurement, "scale": 1.0, "targets": [named.role]}
    if not named.experts:
        return [{"layers": layers_as_written(named.layers), **common}]
    return [{"layers": layer, **common, "experts": experts} for layer, experts in named.experts.items()]
