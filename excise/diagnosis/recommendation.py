"""The edit to try next: of many simulated edits, the one that removes refusal at the lowest KL."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from excise.diagnosis.writers import Contrast
from excise.trials.bench import Bench, layer_ranges, with_rules
from excise.trials.questions import Asked
from excise.trials.refusal import Outcome
from schemas.basis.text import layers_as_written
from schemas.diagnosis import NamedWriter, RangeTrial, Recommendation
from schemas.params.ablate import Ablate

MEASUREMENTS = 3
"""The most causal measurements that are tried."""
KEPT = 3
"""The best edits that are varied further: with fewer writers, and at lower scales. In a race, an edit that so many
others beat is out."""
FINALISTS = 6
"""Edits of a race that are asked all prompts, at most."""
SCALES = (0.5, 0.75)
"""Lower scales at which the best edits are also tried."""

Rules = list[dict[str, Any]]


@dataclass(frozen=True)
class Tried:
    """One edit and its outcome."""

    rules: Rules
    outcome: Outcome
    asked: tuple[Asked, int] | None = None
    """Where it was asked, and its number there."""

    def is_like(self, best: "Tried") -> bool:
        """Whether its KL is not significantly larger than the best one's, by a paired normal 95 % interval."""
        increase = self.outcome.kl_without - best.outcome.kl_without
        return float(increase.mean()) <= 1.96 * float(increase.std()) / math.sqrt(len(increase))


class Edits:
    """Edits that are tried in several rounds: every range of layers, the best of these with fewer writers and at lower
    scales, and the named writer only; no edit twice, and none that the model cannot take."""

    def __init__(self, bench: Bench, ablate: Ablate, writers: Sequence[str], measurements: Sequence[int]) -> None:
        """`measurements` are in the order of how causal they are, the explained one first."""
        self._bench, self._ablate = bench, ablate
        self._writers, self._measurements = writers, measurements[:MEASUREMENTS]
        self.tried: list[Tried] = []
        self._seen: list[Rules] = []
        self._waiting: tuple[list[Rules], Asked] = [], Asked([])

    def ask_ranges(self) -> Asked:
        """Every range of layers, raced."""
        ranges = layer_ranges(self._bench.base.layout.layers)
        rules = [[range_rule(*layers, each, self._writers)] for each in self._measurements for layers in ranges]
        return self._ask(rules, keep=KEPT, most=FINALISTS)

    def ask_variants(self) -> Asked:
        """The best edits so far with fewer writers, and at lower scales."""
        writers = self._writers
        single = [[writer] for writer in writers] if len(writers) > 1 else []
        all_but = [[other for other in writers if other != writer] for writer in writers] if len(writers) > 2 else []
        best = self.best()
        fewer = [[{**rule, "targets": targets} for rule in edit.rules] for edit in best for targets in single + all_but]
        return self._ask_better([*fewer, *self._lower(edit.rules for edit in best)])

    def ask_last(self, named: NamedWriter) -> Asked:
        """The named writer only, and the best edits so far at lower scales."""
        alone = [rules_of(named, each) for each in self._measurements]
        return self._ask_better([*alone, *self._lower([*alone, *(edit.rules for edit in self.best())])])

    def answered(self) -> None:
        """Take what was asked."""
        rules, asked = self._waiting
        if rules:
            outcomes = list(enumerate(self._bench.questions.outcomes(asked)))[-len(rules) :]
            for each, (number, outcome) in zip(rules, outcomes, strict=True):
                if outcome.is_finite:
                    self.tried.append(Tried(each, outcome, (asked, number)))
        self._waiting = [], Asked([])

    def best(self) -> list[Tried]:
        """The best of those that were asked all prompts."""
        whole = [edit for edit in self.tried if edit.outcome.is_whole]
        return sorted(whole, key=lambda edit: edit.outcome.rank)[:KEPT]

    def _lower(self, several: Iterable[Rules]) -> list[Rules]:
        # A scale that is lowered twice would be a third one.
        whole = [rules for rules in several if all(rule["scale"] == 1.0 for rule in rules)]
        return [[{**rule, "scale": scale} for rule in rules] for rules in whole for scale in SCALES]

    def _ask_better(self, several: Iterable[Rules]) -> Asked:
        """Raced against the best so far: only what may be better has to be known."""
        asked = self._ask(several, keep=1, most=KEPT)
        rival = next((edit.asked for edit in self.best()), None)
        if rival is not None and asked.trials:
            self._waiting = self._waiting[0], asked.with_rival(*rival)
        return self._waiting[1]

    def _ask(self, several: Iterable[Rules], keep: int | None = None, most: int | None = None) -> Asked:
        rules, trials = [], []
        for each in several:
            if each in self._seen:
                continue
            self._seen.append(each)
            trial = self._bench.trial(with_rules(self._ablate, each))
            if trial is not None:
                rules.append(each)
                trials.append(trial)
        self._waiting = rules, Asked(trials, keep=keep, most=most)
        return self._waiting[1]


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


def recommend(edits: Edits) -> Recommendation | None:
    """The best edit; None if the model took none."""
    if not edits.best():
        return None
    best = edits.best()[0]
    whole = [edit for edit in edits.tried if edit.outcome.is_whole]
    return Recommendation(
        rules=best.rules,
        removes=best.outcome.removes,
        answers=best.outcome.answers(),
        tried=len(edits.tried),
        ruled_out=len(edits.tried) - len(whole),
        alike=sum(edit is not best and edit.outcome.removes and edit.is_like(best) for edit in whole),
    )


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
