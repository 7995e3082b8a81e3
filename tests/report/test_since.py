"""What became of a metric between two commits, and how often that is said rightly."""

import math

import numpy as np
import pytest
from scipy.stats import beta, binom

from excise.gitops.comment import Since, mover, since
from schemas.evidence import Comparison, Interval
from tests.evidence_documents import drift_row, row, silent_row

CAPABILITY = "capability.facts.exact_match"
REFUSAL = "capability.facts.refusal_rate"


def edited(value: float, margin: float = 0.02, metric: str = CAPABILITY, base: float = 0.5) -> Comparison:
    """A metric whose edited model has this value, with an interval `margin` to either side."""
    return row(metric, base, value, ablated_interval=Interval(low=value - margin, high=value + margin))


@pytest.mark.parametrize(
    ("before", "now", "became"),
    [
        (edited(0.8), edited(0.9), "better"),
        (edited(0.9), edited(0.8), "worse"),
        (edited(0.8, metric=REFUSAL), edited(0.9, metric=REFUSAL), "worse"),
        (edited(0.9, metric=REFUSAL), edited(0.8, metric=REFUSAL), "better"),
        (drift_row("answer_kl", 0.01), drift_row("answer_kl", 0.02), "worse"),
        (edited(0.8, 0.06), edited(0.88, 0.06), "within noise"),
        (edited(0.8, 0.02), edited(0.8, 0.03), "within noise"),
        (edited(0.8), edited(0.8), "unchanged"),
        (None, edited(0.8), "new"),
        (edited(0.8), None, "gone"),
        (silent_row(CAPABILITY, 0.5, 0.8), edited(0.9), "no interval"),
        (silent_row(CAPABILITY, 0.5, 0.8), silent_row(CAPABILITY, 0.5, 0.9), "no interval"),
        (silent_row(CAPABILITY, 0.5, 0.8), silent_row(CAPABILITY, 0.5, 0.8), "unchanged"),
        (edited(0.8), edited(math.nan), "no interval"),
    ],
)
def test_what_became_of_a_metric_is_told_by_both_intervals(
    before: Comparison | None, now: Comparison | None, became: Since
) -> None:
    assert since(before, now) == became


@pytest.mark.parametrize(("value", "became"), [(0.9, "higher"), (0.7, "lower")])
def test_what_nobody_calls_better_is_higher_or_lower(value: float, became: Since) -> None:
    now = edited(value).model_copy(update={"higher_is_better": None})
    assert since(edited(0.8), now) == became


def test_a_model_like_its_base_may_have_moved_since_the_commit_before() -> None:
    like_base = row(CAPABILITY, 0.5, 0.5)
    assert like_base.rose == like_base.fell == 0
    assert since(edited(0.5, 0.03), like_base) == since(edited(0.51), like_base) == "within noise"
    assert since(edited(0.8), like_base) == "worse"


def test_overlapping_intervals_may_belong_to_a_clear_change() -> None:
    before, now = edited(0.80, 0.05), edited(0.88, 0.05)
    assert before.ablated_interval and now.ablated_interval
    assert before.ablated_interval.high > now.ablated_interval.low
    assert since(before, now) == "better"


def test_the_interval_of_a_change_is_newcombes_example() -> None:
    # Newcombe 1998, method 10, 56/70 less 48/80 with Wilson's intervals: 0.0524 to 0.3339.
    before = row(CAPABILITY, 0.5, 48 / 80, ablated_interval=Interval(low=0.4904, high=0.7003))
    now = row(CAPABILITY, 0.5, 56 / 70, ablated_interval=Interval(low=0.6917, high=0.8769))
    found = mover(before, now)
    assert found is not None
    assert [found.low, found.high] == pytest.approx([0.0524, 0.3339], abs=3e-4)


@pytest.mark.parametrize(("samples", "least"), [(20, 0.93), (50, 0.95), (100, 0.95)])
def test_the_interval_of_a_change_holds_the_truth_of_independent_samples(samples: int, least: float) -> None:
    """Counted out, over every pair of results, with the same intervals that the evidence has."""
    counts = np.arange(samples + 1)
    low = np.where(counts == 0, 0.0, beta.ppf(0.025, np.maximum(counts, 1e-9), samples - counts + 1))
    high = np.where(counts == samples, 1.0, beta.ppf(0.975, counts + 1, np.maximum(samples - counts, 1e-9)))
    results = [
        row(CAPABILITY, 0.5, count / samples, ablated_interval=Interval(low=float(low[count]), high=float(high[count])))
        for count in counts
    ]
    ends = np.array([[(found.low, found.high) for now in results if (found := mover(old, now))] for old in results])
    for first in (0.0, 0.01, 0.05, 0.2, 0.5):
        for second in (0.0, 0.02, 0.1, 0.5, 0.8, 0.98, 1.0):
            truth = second - first
            holds = (ends[..., 0] <= truth + 1e-12) & (truth <= ends[..., 1] + 1e-12)
            chance = np.outer(binom.pmf(counts, samples, first), binom.pmf(counts, samples, second))
            assert (chance * holds).sum() >= least, (first, second)
