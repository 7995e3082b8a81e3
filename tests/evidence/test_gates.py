"""Gates: each bound at, below and above its limit, and what fails for want of a number."""

from typing import Any

import pytest

from schemas.artifacts import Comparison, GateVerdict, GateVerdicts
from schemas.params import Gates
from stages.evidence.gates import judge_gates

METRIC = "capability.facts.exact_match"


def row(ablated: float, base: float | None = 0.75, metric: str = METRIC) -> Comparison:
    difference = None if base is None else ablated - base
    return Comparison(metric=metric, base=base, ablated=ablated, difference=difference, samples=None)


def judged(rows: list[Comparison], *gates: dict[str, Any]) -> GateVerdicts:
    return judge_gates(Gates.model_validate(list(gates)).root, rows)


def one(rows: list[Comparison], **gate: Any) -> GateVerdict:
    verdicts = judged(rows, {"metric": METRIC, **gate})
    assert verdicts.verdict == verdicts.gates[0].verdict
    return verdicts.gates[0]


@pytest.mark.parametrize(
    ("bound", "limit", "ablated", "verdict"),
    [
        ("at_most", 0.5, 0.49, "pass"),
        ("at_most", 0.5, 0.5, "pass"),
        ("at_most", 0.5, 0.51, "fail"),
        ("at_least", 0.5, 0.51, "pass"),
        ("at_least", 0.5, 0.5, "pass"),
        ("at_least", 0.5, 0.49, "fail"),
        ("max_drop", 0.25, 0.51, "pass"),
        ("max_drop", 0.25, 0.5, "pass"),
        ("max_drop", 0.25, 0.49, "fail"),
        ("max_drop", 0, 1.0, "pass"),
        ("max_rise", 0.25, 0.99, "pass"),
        ("max_rise", 0.25, 1.0, "pass"),
        ("max_rise", 0.25, 1.01, "fail"),
        ("max_rise", 0, 0.0, "pass"),
    ],
)
def test_a_gate_holds_up_to_its_limit_and_no_further(bound: str, limit: float, ablated: float, verdict: str) -> None:
    assert one([row(ablated)], **{bound: limit}).verdict == verdict


@pytest.mark.parametrize(("base", "ablated", "limit"), [(1.0, 0.98, 0.02), (0.95, 0.9, 0.05), (0.3, 0.2, 0.1)])
def test_a_change_of_just_the_limit_passes_whatever_binary_fractions_make_of_it(
    base: float, ablated: float, limit: float
) -> None:
    assert one([row(ablated, base)], max_drop=limit).verdict == "pass"
    assert one([row(base, ablated)], max_rise=limit).verdict == "pass"


def test_a_verdict_tells_the_gate_in_words_and_the_value_that_it_is_about() -> None:
    assert one([row(0.5)], at_most=0.05) == GateVerdict(
        metric=METRIC, limit="at most 0.05", value=0.5, verdict="fail", reason="it is 0.5"
    )
    assert one([row(0.5)], max_drop=0.3) == GateVerdict(
        metric=METRIC, limit="drop of at most 0.3", value=0.25, verdict="pass", reason="it went from 0.75 to 0.5"
    )
    assert one([row(0.5)], max_rise=0.3).value == -0.25


def test_a_metric_that_was_not_measured_fails_and_names_those_that_were() -> None:
    rows = [row(0.5, metric="capability.facts.refusal_rate"), row(0.5, metric="capability.sums.exact_match")]
    verdict = one(rows, at_most=1)
    assert (verdict.verdict, verdict.value) == ("fail", None)
    assert "capability.facts.refusal_rate" in verdict.reason and "sums" not in verdict.reason
    assert one([], at_most=1).reason == "there is no such metric; of capability.facts there is none"


@pytest.mark.parametrize("bound", ["max_drop", "max_rise"])
def test_drift_cannot_drop_or_rise(bound: str) -> None:
    drift = "drift.first_token_kl"
    verdict = judged([row(0.0, None, drift)], {"metric": drift, bound: 1}).gates[0]
    assert verdict.verdict == "fail" and "at_most" in verdict.reason


def test_drift_has_a_limit_of_its_own() -> None:
    drift = "drift.first_token_kl"
    verdicts = [judged([row(0.25, None, drift)], {"metric": drift, "at_most": limit}).verdict for limit in (0.25, 0.2)]
    assert verdicts == ["pass", "fail"]


@pytest.mark.parametrize("bound", ["at_most", "at_least"])
def test_what_is_no_number_fails(bound: str) -> None:
    assert one([row(float("nan"))], **{bound: 0}).verdict == "fail"


def test_one_failing_gate_fails_the_run_and_the_others_keep_their_verdicts() -> None:
    good, bad = {"metric": METRIC, "at_least": 0.5}, {"metric": METRIC, "at_least": 0.9}
    verdicts = judged([row(0.75)], good, bad, good)
    assert verdicts.verdict == "fail"
    assert [gate.verdict for gate in verdicts.gates] == ["pass", "fail", "pass"]


def test_no_gates_pass() -> None:
    assert judged([row(0.0)]) == GateVerdicts(verdict="pass", gates=[])
