"""The comparison: one row a metric, and the same numbers as DVC reads them."""

import pytest

from schemas.artifacts import Comparison, Results
from stages.evidence.comparison import compare, metric_tree


def results(refusals: float, facts: float, **drift: float) -> Results:
    return Results(
        metrics={
            "refusal": {"harmful": {"refusal_rate": refusals, "exact_match": 0.125}},
            "over_refusal": {},
            "capability": {"facts": {"exact_match": facts}},
        },
        samples={"harmful": 320, "facts": 384},
        drift=drift,
    )


@pytest.fixture
def rows() -> list[Comparison]:
    return compare(results(1.0, 0.75), results(0.25, 1.0, first_token_kl=0.5))


def test_each_metric_is_one_row_in_the_order_of_groups_and_drift_is_last(rows: list[Comparison]) -> None:
    assert rows == [
        Comparison(metric="refusal.harmful.refusal_rate", base=1.0, ablated=0.25, difference=-0.75, samples=320),
        Comparison(metric="refusal.harmful.exact_match", base=0.125, ablated=0.125, difference=0.0, samples=320),
        Comparison(metric="capability.facts.exact_match", base=0.75, ablated=1.0, difference=0.25, samples=384),
        Comparison(metric="drift.first_token_kl", base=None, ablated=0.5, difference=None, samples=None),
    ]


def test_dvc_reads_the_edited_values_by_name_and_the_base_s_below_base(rows: list[Comparison]) -> None:
    assert metric_tree(rows) == {
        "refusal": {"harmful": {"refusal_rate": 0.25, "exact_match": 0.125}},
        "capability": {"facts": {"exact_match": 1.0}},
        "drift": {"first_token_kl": 0.5},
        "base": {
            "refusal": {"harmful": {"refusal_rate": 1.0, "exact_match": 0.125}},
            "capability": {"facts": {"exact_match": 0.75}},
        },
    }


def test_nothing_measured_is_nothing_compared() -> None:
    empty = Results(metrics={"refusal": {}}, samples={}, drift={})
    assert compare(empty, empty) == [] and metric_tree([]) == {}
