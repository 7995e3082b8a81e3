"""The edit to try next: of many simulated edits, the one that removes refusal at the lowest KL."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from excise.diagnosis.writers import Contrast
from excise.trials.bench import Bench, layer_ranges, with_rules
from excise.trials.refusal import LIMIT, Outcome
from schemas.basis.text import layers_as_written
from schemas.diagnosis import NamedWriter, RangeTrial, Recommendation
from schemas.params.ablate import Ablate

MEASUREMENTS = 3
"""The most causal measurements that are tried."""
KEPT = 3
"""The best edits that are varied further: with fewer writers, and at lower scales."""
SCALES = (0.5, 0.75)
"""Lower scales at which the best edits are also tried."""

Rules = list[dict[str, Any]]


@dataclass(frozen=True)
class Tried:
    """One edit and its outcome."""

    rules: Rules
    outcome: Outcome

    @property
    def removes(self) -> bool:
        return self.outcome.remaining <= LIMIT

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Lower is better: refusal removed at the lowest KL, or else the least refusal. What rounding tells apart is
        equal, such as two lists of targets of which a layer has the same."""
        kl = round(float(self.outcome.kl.mean()), 6)
        return (False, kl, 0.0) if self.removes else (True, round(self.outcome.remaining, 6), kl)

    def is_like(self, best: "Tried") -> bool:
        """Whether its KL is not significantly larger than the best one's, by a paired normal 95 % interval."""
        increase = self.outcome.kl - best.outcome.kl
        return float(increase.mean()) <= 1.96 * float(increase.std()) / math.sqrt(len(increase))


def try_edits(
    bench: Bench, ablate: Ablate, writers: Sequence[str], measurements: Sequence[int], named: Rules
) -> list[Tried]:
    """Try every range of layers, the best of these with fewer writers, the named writer only, and the best of all at
    lower scales; no edit twice, and none that the model cannot take. `measurements` are in the order of how causal they
    are, the explained one first; `named` are rules that edit only the writer that causes refusal."""
    tried: list[Tried] = []
    single = [[writer] for writer in writers] if len(writers) > 1 else []
    all_but = [[other for other in writers if other != writer] for writer in writers] if len(writers) > 2 else []

    def attempt(several: Sequence[Rules]) -> None:
        """Try those that are new, together."""
        new: list[Rules] = []
        for rules in several:
            if rules not in [*new, *(edit.rules for edit in tried)]:
                new.append(rules)
        outcomes = bench.attempt([with_rules(ablate, rules) for rules in new])
        tried.extend(Tried(rules, outcome) for rules, outcome in zip(new, outcomes, strict=True) if outcome is not None)

    ranges, first = layer_ranges(bench.base.layout.layers), measurements[:MEASUREMENTS]
    attempt([[range_rule(*layers, measurement, writers)] for measurement in first for layers in ranges])
    fewer = [
        [{**rule, "targets": targets} for rule in best.rules] for best in _best(tried) for targets in single + all_but
    ]
    attempt([*fewer, *([{**rule, "measurement": measurement} for rule in named] for measurement in first)])
    attempt([[{**rule, "scale": s * rule["scale"]} for rule in best.rules] for best in _best(tried) for s in SCALES])
    return tried


def explain_ranges(
    tried: Sequence[Tried], contrast: Contrast, layers: int, measurement: int, writers: Sequence[str]
) -> list[RangeTrial]:
    """Layer coverage: the edits of every writer in one range of layers."""
    rows = []
    for first, last in layer_ranges(layers):
        rules = [range_rule(first, last, measurement, writers)]
        answers = next((edit.outcome.answers() for edit in tried if edit.rules == rules), None)
        written = sum(contrast.difference(site) for site in contrast.sites if first <= site[0] <= last)
        rows.append(RangeTrial(first=first, last=last, written=written, answers=answers))
    return rows


def recommend(tried: Sequence[Tried]) -> Recommendation | None:
    """The best edit; None if the model took none."""
    if not tried:
        return None
    best = _best(tried)[0]
    return Recommendation(
        rules=best.rules,
        removes=best.removes,
        answers=best.outcome.answers(),
        tried=len(tried),
        alike=sum(edit is not best and edit.removes and edit.is_like(best) for edit in tried),
    )


def _best(tried: Sequence[Tried]) -> list[Tried]:
    return sorted(tried, key=lambda edit: edit.rank)[:KEPT]


def range_rule(first: int, last: int, measurement: int, writers: Sequence[str]) -> dict[str, Any]:
    """The rule that edits a range of layers at scale 1."""
    layers = layers_as_written(range(first, last + 1))
    return {"layers": layers, "measurement": measurement, "scale": 1.0, "targets": list(writers)}


def rules_of(named: NamedWriter, measurement: int) -> Rules:
    """Rules that edit only the named writer."""
    common = {"measurement": measurement, "scale": 1.0, "targets": [named.role]}
    if not named.experts:
        return [{"layers": layers_as_written(named.layers), **common}]
    return [{"layers": layer, **common, "experts": experts} for layer, experts in named.experts.items()]
