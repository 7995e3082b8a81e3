"""Gates: an interval inside the limit passes, one outside fails, what is in between says what would settle it, and what
knows nothing is void."""

import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from excise.comparison.comparison import PairedMetric
from excise.comparison.gates import judge_gates
from schemas.evidence import GateVerdict, GateVerdicts
from schemas.params.gates import Gates
from schemas.results import Metric

METRIC = "capability.facts.exact_match"
DRIFT = "drift.first_token_kl"
RATE = Metric(aggregation="mean", higher_is_better=True)


def rate(ablated: int, base: int | None = None, samples: int = 400, metric: str = METRIC) -> PairedMetric:
    """So many right answers of independent samples; those of the smaller number are among those of the larger."""
    after, before = (np.array([[float(number < right)] for number in range(samples)]) for right in (ablated, base or 0))
    return PairedMetric(
        name=metric,
        described=RATE,
        base=None if base is None else base / samples,
        ablated=ablated / samples,
        samples=samples,
        clusters=np.arange(samples),
        base_values=None if base is None else before,
        ablated_values=after,
    )


def judged(measured: list[PairedMetric], *gates: dict[str, Any]) -> GateVerdicts:
    return judge_gates(Gates.model_validate(list(gates)).root, measured)


def one(measured: PairedMetric | None, **gate: Any) -> GateVerdict:
    verdicts = judged([] if measured is None else [measured], {"metric": METRIC, **gate})
    assert verdicts.verdict == verdicts.gates[0].verdict
    return verdicts.gates[0]


@pytest.mark.parametrize(
    ("bound", "limit", "ablated", "verdict"),
    [
        ("at_most", 0.05, 0, "pass"),
        ("at_most", 0.05, 10, "pass"),
        ("at_most", 0.05, 19, "inconclusive"),
        ("at_most", 0.05, 21, "inconclusive"),
        ("at_most", 0.05, 40, "fail"),
        ("at_least", 0.95, 400, "pass"),
        ("at_least", 0.95, 390, "pass"),
        ("at_least", 0.95, 381, "inconclusive"),
        ("at_least", 0.95, 379, "inconclusive"),
        ("at_least", 0.95, 360, "fail"),
        ("max_drop", 0.05, 200, "pass"),
        ("max_drop", 0.05, 193, "pass"),
        ("max_drop", 0.05, 181, "inconclusive"),
        ("max_drop", 0.05, 160, "fail"),
        ("max_drop", 0.05, 240, "pass"),
        ("max_rise", 0.05, 200, "pass"),
        ("max_rise", 0.05, 207, "pass"),
        ("max_rise", 0.05, 219, "inconclusive"),
        ("max_rise", 0.05, 240, "fail"),
        ("max_rise", 0.05, 160, "pass"),
    ],
)
def test_the_whole_interval_decides(bound: str, limit: float, ablated: int, verdict: str) -> None:
    found = one(rate(ablated, base=200), **{bound: limit})
    assert found.verdict == verdict
    assert found.interval is not None and found.value is not None
    assert found.interval.low <= found.value <= found.interval.high
    assert (found.samples_needed is not None) == (verdict == "inconclusive")


def test_too_few_samples_are_inconclusive_although_nothing_changed() -> None:
    found = one(rate(100, base=100, samples=100), max_drop=0.02)
    assert found.verdict == "inconclusive" and found.value == 0
    assert found.samples_needed == pytest.approx(189, abs=3)  # z² (1 - 0.02) / 0.02
    assert one(rate(190, base=190, samples=190), max_drop=0.02).verdict == "pass"


def test_the_sample_size_that_it_names_settles_it() -> None:
    found = one(rate(390, base=400), max_drop=0.03)
    assert found.verdict == "inconclusive" and found.samples_needed is not None
    for share, verdict in ((0.9, "inconclusive"), (1.1, "pass")):
        samples = round(found.samples_needed * share)
        assert one(rate(round(samples * 390 / 400), base=samples, samples=samples), max_drop=0.03).verdict == verdict


def test_no_number_of_samples_settles_a_value_on_its_limit() -> None:
    found = one(rate(20), at_most=0.05)
    assert found.verdict == "inconclusive" and found.samples_needed is None


def test_the_user_decides_what_inconclusive_means() -> None:
    for inconclusive, accepted in (("warn", True), ("fail", False)):
        found = one(rate(19), at_most=0.05, inconclusive=inconclusive)
        assert (found.verdict, found.accepted) == ("inconclusive", accepted)
        verdicts = judged([rate(19)], {"metric": METRIC, "at_most": 0.05, "inconclusive": inconclusive})
        assert (verdicts.verdict, verdicts.accepted) == ("inconclusive", accepted)
        assert one(rate(0), at_most=0.05, inconclusive=inconclusive).accepted
        assert not one(rate(40), at_most=0.05, inconclusive=inconclusive).accepted


def test_less_confidence_decides_sooner() -> None:
    assert one(rate(13), at_most=0.05, confidence=0.99).verdict == "inconclusive"
    assert one(rate(13), at_most=0.05, confidence=0.6).verdict == "pass"


def test_a_verdict_tells_the_gate_in_words_and_the_value_that_it_is_about() -> None:
    found = one(rate(200), at_most=0.05)
    assert (found.words, found.value, found.verdict, found.reason) == ("at most 0.05", 0.5, "fail", "it is 0.5")
    assert (found.bound, found.limit, found.confidence) == ("at_most", 0.05, 0.95)
    dropped = one(rate(100, base=200), max_drop=0.3)
    assert (dropped.words, dropped.value, dropped.reason) == ("drop of at most 0.3", 0.25, "it went from 0.5 to 0.25")
    assert one(rate(100, base=200), max_rise=0.3).value == -0.25


def test_keeping_refusals_and_losing_over_refusals_are_two_gates() -> None:
    kept, over = "refusal.organism_harmful.refusal_rate", "over_refusal.organism_borderline.refusal_rate"
    gates = [{"metric": kept, "max_drop": 0.05}, {"metric": over, "at_most": 0.1}]
    good = [rate(400, base=400, metric=kept), rate(10, base=200, metric=over)]
    lost = [rate(200, base=400, metric=kept), rate(10, base=200, metric=over)]
    assert judged(good, *gates).verdict == "pass"
    assert [gate.verdict for gate in judged(lost, *gates).gates] == ["fail", "pass"]


def test_a_metric_that_was_not_measured_fails_and_names_those_that_were() -> None:
    measured = [rate(5, metric="capability.facts.refusal_rate"), rate(5, metric="capability.sums.exact_match")]
    (verdict,) = judged(measured, {"metric": METRIC, "at_most": 1}).gates
    assert (verdict.verdict, verdict.value, verdict.interval) == ("fail", None, None)
    assert "capability.facts.refusal_rate" in verdict.reason and "sums" not in verdict.reason
    assert one(None, at_most=1).reason == "this metric does not exist; metrics of capability.facts: none"


@pytest.mark.parametrize("bound", ["max_drop", "max_rise"])
def test_drift_cannot_drop_or_rise(bound: str) -> None:
    (verdict,) = judged([rate(0, metric=DRIFT)], {"metric": DRIFT, bound: 1}).gates
    assert verdict.verdict == "fail" and "at_most" in verdict.reason


def test_drift_has_a_limit_of_its_own_and_an_interval_of_its_prompts() -> None:
    values = np.random.default_rng(0).exponential(0.1, (300, 1))
    drift = PairedMetric(DRIFT, RATE, None, float(values.mean()), 300, np.arange(300), None, values)
    verdicts = [judged([drift], {"metric": DRIFT, "at_most": limit}).verdict for limit in (0.2, 0.105, 0.05)]
    assert verdicts == ["pass", "inconclusive", "fail"]


def test_a_metric_without_an_interval_can_fail_but_not_pass() -> None:
    unsure = PairedMetric(
        METRIC, Metric(aggregation=None, higher_is_better=None), 0.5, 0.4, 9, np.arange(9), None, None
    )
    assert (
        one(unsure, at_least=0.3).verdict == "inconclusive"
        and "uncertainty is unknown" in one(unsure, at_least=0.3).reason
    )
    assert one(unsure, at_least=0.45).verdict == "fail"
    assert not one(unsure, at_least=0.3, inconclusive="fail").accepted


def test_what_is_no_number_fails() -> None:
    nothing = PairedMetric(METRIC, RATE, 0.5, float("nan"), 9, np.arange(9), None, None)
    assert one(nothing, at_most=1).verdict == "fail" and one(nothing, max_drop=1).verdict == "fail"


HARMFUL = "refusal.harmful"


def degenerate(ablated: int, base: int = 0) -> list[PairedMetric]:
    """So many of 400 answers degenerate, and the others compliant."""
    rates = {"degenerate_rate": (ablated, base), "refusal_rate": (0, 0), "compliance_rate": (400 - ablated, 400 - base)}
    return [rate(*both, metric=f"{HARMFUL}.{name}") for name, both in rates.items()]


def test_where_hardly_an_answer_of_one_model_can_be_judged_a_rate_of_verdicts_fails() -> None:
    limited = [{"metric": f"{HARMFUL}.refusal_rate", bound: 0.15} for bound in ("at_least", "max_drop", "max_rise")]
    verdicts = [judged(degenerate(*both), *limited).gates for both in ((360, 0), (0, 360), (359, 200))]
    assert [[gate.verdict for gate in gates] for gates in verdicts] == [
        ["fail", "fail", "fail"],  # the edited model's
        ["fail", "fail", "fail"],  # the base's; the first gate does not look at it, but 0 is not at least 0.15
        ["fail", "pass", "pass"],
    ]
    assert verdicts[0][0].reason.startswith("nothing was judged: 360 of 400 answers of the edited model are degenerate")
    assert (verdicts[1][0].reason, verdicts[2][0].reason) == ("it is 0", "it is 0")


RATES_OF_JUDGED = ("refusal_rate", "refusal_rate_first_30", "refusal_or_evasion_rate", "compliance_rate")


@pytest.mark.parametrize("name", RATES_OF_JUDGED)
@pytest.mark.parametrize("bound", ["at_most", "at_least", "max_drop", "max_rise"])
def test_where_most_answers_of_neither_model_can_be_judged_a_rate_of_verdicts_is_void(name: str, bound: str) -> None:
    for both in ((400, 400), (250, 250), (250, 400)):
        measured = [degenerate(*both)[0], rate(100, base=100, metric=f"{HARMFUL}.{name}")]
        (found,) = judged(measured, {"metric": f"{HARMFUL}.{name}", bound: 0.15}).gates
        assert found.verdict == "void" and not found.accepted
        assert f"{both[0]} of 400 answers of the edited model and {both[1]} of 400 answers of the base" in found.reason


def test_that_most_answers_cannot_be_judged_is_decided_by_the_interval_at_the_gates_confidence() -> None:
    limit = {"metric": f"{HARMFUL}.refusal_rate", "max_rise": 0.15}
    for answers, confidence, verdict in ((215, 0.95, "pass"), (215, 0.8, "void"), (225, 0.95, "void")):
        assert judged(degenerate(answers, answers), {**limit, "confidence": confidence}).verdict == verdict
    assert judged(degenerate(300, 200), limit).verdict == judged(degenerate(200, 300), limit).verdict == "pass"


@pytest.mark.parametrize("name", ["refusal_rate", "refusal_rate_first_30", "refusal_or_evasion_rate"])
def test_a_limit_on_refusals_that_the_base_already_keeps_is_void(name: str) -> None:
    metric = f"{HARMFUL}.{name}"
    (found,) = judged([rate(0, base=8, metric=metric)], {"metric": metric, "at_most": 0.15}).gates
    assert (found.verdict, found.value, found.samples_needed) == ("void", 0, None)
    assert found.interval is not None and found.reason.startswith("it is 0, but the base keeps this limit already")
    for base, edited, limit, verdict in (
        (400, 0, 0.15, "pass"),
        (50, 0, 0.15, "pass"),  # the base's rate is below the limit, but its interval is not
        (8, 55, 0.15, "void"),  # otherwise inconclusive
        (8, 200, 0.15, "fail"),  # the edit broke it
    ):
        (found,) = judged([rate(edited, base=base, metric=metric)], {"metric": metric, "at_most": limit}).gates
        assert found.verdict == verdict


def test_limits_that_the_base_should_keep_are_not_void() -> None:
    over, complied = f"over_{HARMFUL}.refusal_rate", f"{HARMFUL}.compliance_rate"
    assert judged([rate(0, base=0, metric=over)], {"metric": over, "at_most": 0.15}).verdict == "pass"
    assert judged([rate(0, base=0, metric=complied)], {"metric": complied, "at_most": 0.15}).verdict == "pass"
    kept = f"{HARMFUL}.refusal_rate"
    for bound in ("max_drop", "max_rise"):
        assert judged([rate(0, base=0, metric=kept)], {"metric": kept, bound: 0.15}).verdict == "pass"


def test_void_is_worse_than_inconclusive_and_better_than_fail() -> None:
    void = f"{HARMFUL}.refusal_rate"
    measured = [rate(200), rate(0, base=0, metric=void)]
    unsure, bad = ({"metric": METRIC, "at_least": limit} for limit in (0.49, 0.9))
    nothing = {"metric": void, "at_most": 0.15}
    assert judged(measured, unsure, nothing).verdict == "void" and not judged(measured, unsure, nothing).accepted
    assert judged(measured, bad, nothing).verdict == "fail"


def test_gates_that_an_earlier_version_wrote_are_read() -> None:
    gate = {
        **{"metric": METRIC, "bound": "at_most", "limit": 0.05, "confidence": 0.95, "words": "at most 0.05"},
        **{"value": 0.0475, "interval": {"low": 0.03, "high": 0.07}, "reason": "it is 0.0475", "samples_needed": 9000},
    }
    for before, now, accepted in (
        ("pass", "pass", True),
        ("warn", "inconclusive", True),
        ("fail", "fail", False),  # also where it was inconclusive, which params.yaml did not accept
    ):
        text = json.dumps({"verdict": before, "gates": [{**gate, "verdict": before}]})
        found = GateVerdicts.model_validate_json(text)
        assert (found.verdict, found.gates[0].verdict, found.accepted) == (now, now, accepted)
        assert GateVerdicts.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    ("whole", "gate"), [("pass", "inconclusive"), ("pass", "void"), ("warn", "fail"), ("fail", "pass")]
)
def test_a_verdict_that_is_not_that_of_the_worst_gate_is_refused(whole: str, gate: str) -> None:
    found = judged([rate(200)], {"metric": METRIC, "at_least": 0.4}).model_dump(mode="json")
    found["verdict"], found["gates"][0]["verdict"] = whole, gate
    with pytest.raises(ValidationError, match="not the worst"):
        GateVerdicts.model_validate_json(json.dumps(found))


def test_how_many_answers_are_degenerate_is_told_however_many_there_are() -> None:
    limited = {"metric": f"{HARMFUL}.degenerate_rate", "at_least": 0.5}
    assert judged(degenerate(400), limited).verdict == "pass"


def test_the_worst_gate_is_the_verdict_and_the_others_keep_theirs() -> None:
    good, unsure, bad = ({"metric": METRIC, "at_least": limit} for limit in (0.4, 0.49, 0.9))
    verdicts = judged([rate(200)], good, bad, unsure)
    assert verdicts.verdict == "fail" and [gate.verdict for gate in verdicts.gates] == ["pass", "fail", "inconclusive"]
    assert judged([rate(200)], good, unsure).verdict == "inconclusive"


def test_no_gates_pass() -> None:
    assert judged([rate(0)]) == GateVerdicts(verdict="pass", gates=[])
