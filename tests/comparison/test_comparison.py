"""The comparison: one row a metric, over the same samples, and the same numbers as DVC reads them."""

from collections.abc import Sequence

import pytest

from excise.comparison.comparison import PairedMetric, Side, changes, compare, measure_both, metric_tree
from excise.plumbing.errors import StageError
from schemas.results import Metric, Metrics, Results, Sample

RATE = Metric(aggregation="mean", higher_is_better=True)
DRIFT = Metric(aggregation="ratio", higher_is_better=False)
ITEMS = 40
WORDINGS = 5


def sample(number: int, metrics: dict[str, float | list[float]], item: str | None = None, prompt: str = "") -> Sample:
    return Sample(
        id=f"s{number:03}",
        item=item,
        prompt=prompt or f"prompt {number}",
        response=f"answer {metrics}",
        verdict=None,
        metrics=metrics,
    )


def side(values: Sequence[float], others: Sequence[float] | None = None, drift: Sequence[Sample] = ()) -> Side:
    """One task `facts`, of five wordings an item, with a rate and perhaps a number."""
    metrics: Metrics = {"refusal": {}, "capability": {"facts": {"exact_match": sum(values) / len(values)}}}
    found = []
    for number, value in enumerate(values):
        of_sample: dict[str, float | list[float]] = {"exact_match": value}
        if others is not None:
            of_sample["score"] = others[number]
        found.append(sample(number, of_sample, f"item {number // WORDINGS}"))
    if others is not None:
        metrics["capability"]["facts"]["score"] = sum(others) / len(others)
    return Side(
        Results(
            metrics=metrics,
            described={"facts": {"exact_match": RATE, "score": RATE}, "drift": {"answer_kl": DRIFT}},
            samples={"facts": len(values)},
            batch_size=64,
            drift={"answer_kl": 0.5} if drift else {},
        ),
        {"facts": found, **({"drift": drift} if drift else {})},
    )


def one(base: Side, ablated: Side, metric: str = "capability.facts.exact_match") -> PairedMetric:
    return next(measured for measured in measure_both(base, ablated) if measured.name == metric)


ALL = [1.0] * ITEMS * WORDINGS
HALF = [float(number % 2) for number in range(ITEMS * WORDINGS)]


def test_each_metric_is_one_row_in_the_order_of_groups_and_drift_is_last() -> None:
    drift = [sample(number, {"answer_kl": [1.0, 2.0]}) for number in range(30)]
    rows = compare(measure_both(side(ALL, HALF), side(HALF, ALL, drift)))
    assert [row.metric for row in rows] == ["capability.facts.exact_match", "capability.facts.score", "drift.answer_kl"]
    assert (rows[0].base, rows[0].ablated, rows[0].difference) == (1.0, 0.5, -0.5)
    assert (rows[0].rose, rows[0].fell, rows[1].rose, rows[1].fell) == (0, 100, 100, 0)
    assert (rows[2].base, rows[2].difference, rows[2].rose, rows[2].samples) == (None, None, None, 30)


def test_wordings_of_one_item_are_one_cluster_and_widen_the_interval() -> None:
    fell_together = [float(number // WORDINGS >= 8) for number in range(ITEMS * WORDINGS)]
    row = compare(measure_both(side(ALL), side(fell_together)))[0]
    assert (row.samples, row.clusters) == (200, 40)
    assert row.difference_interval is not None and row.ablated_interval is not None
    independent = one(side(ALL), side(fell_together))
    alone = PairedMetric(**{**vars(independent), "clusters": independent.clusters * 0 + range(200)})
    growing = alone.difference_interval(0.95)
    assert growing is not None
    narrow = growing(1)
    assert row.difference_interval.high - row.difference_interval.low > 1.8 * (narrow.high - narrow.low)
    assert row.difference_interval.low < -0.2 < row.difference_interval.high


def test_the_same_model_twice_has_intervals_around_no_change() -> None:
    for row in compare(measure_both(side(HALF, ALL), side(HALF, ALL))):
        assert row.difference == 0 and (row.rose, row.fell) == (0, 0) and row.p_value == 1
        assert row.difference_interval is not None
        assert row.difference_interval.low <= 0 <= row.difference_interval.high


def test_a_rate_of_all_or_none_still_has_an_interval() -> None:
    row = compare(measure_both(side(ALL), side([0.0] * len(ALL))))[0]
    assert row.base_interval is not None and row.base_interval.low < 0.95 and row.base_interval.high == 1
    assert row.ablated_interval is not None and row.ablated_interval.high > 0.05 and row.ablated_interval.low == 0


def test_what_is_no_rate_is_resampled_through_its_own_aggregation() -> None:
    scores = [number % 7 / 7 for number in range(len(ALL))]
    shifted = [score + 0.125 for score in scores]
    measured = one(side(ALL, scores), side(ALL, shifted), "capability.facts.score")
    assert not measured.yes_no
    found, single = measured.difference_interval(0.95), measured.value_interval(measured.ablated_values, 0.95)
    assert found is not None and single is not None
    assert (found(1).low, found(1).high) == pytest.approx((0.125, 0.125))
    assert single(1).low < measured.ablated < single(1).high


def test_more_samples_of_the_same_kind_narrow_the_interval() -> None:
    rate = one(side(ALL), side(HALF))
    score = one(side(ALL, HALF), side(ALL, [0.3 * value + 0.1 for value in HALF]), "capability.facts.score")
    for measured in (rate, score):
        found = measured.difference_interval(0.95)
        assert found is not None
        widths = [found(times).high - found(times).low for times in (1, 4)]
        assert widths[1] == pytest.approx(widths[0] / 2, rel=0.1)


def test_what_cannot_be_resampled_has_no_interval_and_says_why() -> None:
    base, ablated = side(ALL), side(HALF)
    for results in (base.results, ablated.results):
        results.described["facts"]["exact_match"] = Metric(aggregation=None, higher_is_better=True)
    row = compare(measure_both(base, ablated))[0]
    assert row.difference == -0.5 and row.difference_interval is None and row.reason


def test_too_few_items_have_no_interval_of_what_is_no_rate() -> None:
    few = [sample(number, {"answer_kl": [0.5 + number % 3, 2.0]}, f"item {number % 3}") for number in range(30)]
    row = compare(measure_both(side(ALL), side(ALL, drift=few)))[-1]
    assert row.ablated_interval is None and row.clusters == 3
    assert row.reason == "too few of its samples are independent"


def test_agreement_is_a_rate_of_tokens_whose_prompts_are_clusters() -> None:
    agreed = [sample(number, {"answer_kl": [8.0, 8.0]}) for number in range(30)]
    (drift,) = [found for found in measure_both(side(ALL), side(ALL, drift=agreed)) if found.base is None]
    found = drift.value_interval(drift.ablated_values, 0.95)
    assert found is not None and found(1).high == 1 and 0.85 < found(1).low < 0.95  # 30 prompts, not 240 tokens


@pytest.mark.parametrize("change", ["id", "item", "prompt", "more"])
def test_other_samples_are_an_error(change: str) -> None:
    base, ablated = side(ALL), side(ALL)
    if change == "more":
        base.samples["facts"].append(sample(999, {"exact_match": 1.0}))  # type: ignore[attr-defined]
    else:
        base.samples["facts"][7] = base.samples["facts"][7].model_copy(update={change: "other"})  # type: ignore[index]
    with pytest.raises(StageError, match="not asked the same samples of facts"):
        measure_both(base, ablated)


def test_the_samples_that_changed_most_are_shown_with_both_answers() -> None:
    base, ablated = side(ALL, [0.0] * 200), side(HALF, [float(number == 4) for number in range(200)])
    (found,) = changes(base, ablated)
    assert (found.task, found.samples, found.changed) == ("facts", 200, 100)
    assert len(found.shown) == 10
    first, second = found.shown[:2]
    assert (first.id, first.metrics) == ("s004", {"exact_match": (1.0, 0.0), "score": (0.0, 1.0)})
    assert (second.id, second.metrics) == ("s000", {"exact_match": (1.0, 0.0)})
    assert first.base != first.ablated and first.prompt == "prompt 4"
    items = [int(shown.id.removeprefix("s")) // WORDINGS for shown in found.shown[1:]]
    assert items == sorted(set(items))  # of each item one, before any has a second


def test_dvc_reads_the_edited_values_by_name_and_the_base_s_below_base() -> None:
    drift = [sample(number, {"answer_kl": [1.0, 2.0]}) for number in range(3)]
    assert metric_tree(compare(measure_both(side(ALL), side(HALF, drift=drift)))) == {
        "capability": {"facts": {"exact_match": 0.5}},
        "drift": {"answer_kl": 0.5},
        "base": {"capability": {"facts": {"exact_match": 1.0}}},
    }


def test_nothing_measured_is_nothing_compared() -> None:
    empty = Side(Results(metrics={"refusal": {}}, described={}, samples={}, batch_size=1, drift={}), {})
    assert measure_both(empty, empty) == [] and metric_tree([]) == {} and changes(empty, empty) == []
