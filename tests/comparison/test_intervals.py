"""Intervals against published ones, against the share of the time that they must hold the truth, and as a whole."""

import math
import time
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import t as student

from benchmarks.coverage import (
    CLUSTERED_RATES,
    CORRELATIONS,
    DISCORDANCES,
    ITEMS,
    RATES,
    SIZES,
    SPLITS,
    WORDINGS,
    of_bootstrap,
    of_clustered_difference,
    of_clustered_rate,
    of_difference,
    of_rate,
    of_tango,
    perplexity_change,
)
from excise.comparison import intervals
from excise.comparison.intervals import (
    bootstrap_interval,
    clopper_pearson,
    design_effect,
    mcnemar,
    paired_interval,
    rate_interval,
    samples_needed,
    tango,
)
from schemas.evidence import Interval

Array = NDArray[np.float64]

COVERAGE = 0.93
"""What intervals at 95 % must reach everywhere; near rates of 0 and 1 no usable interval has 0.95 throughout."""
Z = 1.959963984540054
ROUNDING = 1e-9

some = settings(max_examples=100, deadline=None, derandomize=True)


def near(low: float, high: float, digits: int) -> object:
    return pytest.approx((low, high), abs=0.5001 * 10**-digits)


def ends(bounds: Interval) -> tuple[float, float]:
    return bounds.low, bounds.high


@pytest.mark.parametrize(
    ("gained", "lost", "samples", "confidence", "low", "high", "digits"),
    [
        # Tango 1998 (Statistics in Medicine 17:891), both examples.
        (9, 3, 32, 0.95, -0.027, 0.390, 3),
        (0, 1, 44, 0.90, -0.096, 0.037, 3),
        # Agresti and Min 2005 (Statistics in Medicine 24:729).
        (16, 8, 86, 0.95, -0.020, 0.207, 3),
        # Fagerland, Lydersen and Laake 2014 (Statistics in Medicine 33:2850), airway hyper-responsiveness.
        (1, 7, 21, 0.95, -0.517, -0.026, 3),
        # The same authors' R package contingencytables, complete response.
        (6, 16, 161, 0.95, -0.1240, -0.0054, 4),
    ],
)
def test_tango_gives_what_is_published(
    gained: int, lost: int, samples: int, confidence: float, low: float, high: float, digits: int
) -> None:
    assert ends(tango(gained, lost, samples, confidence)) == near(low, high, digits)


@pytest.mark.parametrize(
    ("yes", "samples", "wilson_high"), [(81, 263, 0.3662), (15, 148, 0.1605), (0, 20, 0.1611), (1, 29, 0.1718)]
)
def test_the_outer_end_of_tango_is_wilsons_where_nothing_is_lost(yes: int, samples: int, wilson_high: float) -> None:
    # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3.
    assert tango(yes, 0, samples, 0.95).high == pytest.approx(wilson_high, abs=5e-5)


@pytest.mark.parametrize(
    ("yes", "samples", "low", "high"),
    [(81, 263, 0.2527, 0.3676), (15, 148, 0.0578, 0.1617), (0, 20, 0, 0.1684), (1, 29, 0.0009, 0.1776)],
)
def test_clopper_pearson_gives_what_is_published(yes: int, samples: int, low: float, high: float) -> None:
    # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 5.
    assert ends(clopper_pearson(yes, samples, 0.95)) == near(low, high, 4)
    assert ends(clopper_pearson(samples - yes, samples, 0.95)) == near(1 - high, 1 - low, 4)


@pytest.mark.parametrize(("gained", "lost", "p"), [(6, 16, 0.052479), (16, 6, 0.052479), (1, 7, 18 / 256)])
def test_mcnemar_gives_what_is_published(gained: int, lost: int, p: float) -> None:
    # The first as the R package contingencytables has it; the last by hand, 2 (1 + 8) / 2^8.
    assert mcnemar(gained, lost) == pytest.approx(p, abs=5e-7)


@pytest.mark.parametrize("samples", [32, 100, 1_000])
def test_four_changes_the_same_way_are_a_difference_and_six_have_a_small_p_value(samples: int) -> None:
    assert tango(0, 4, samples, 0.95).high < 0 < tango(0, 3, samples, 0.95).high
    assert mcnemar(0, 6) < 0.05 < mcnemar(0, 5)


def test_mcnemar_of_no_change_is_one() -> None:
    assert mcnemar(0, 0) == 1


@pytest.mark.parametrize("samples", SIZES)
@pytest.mark.parametrize("discordance", DISCORDANCES)
@pytest.mark.parametrize("split", SPLITS)
def test_intervals_of_differences_hold_the_truth_often_enough(samples: int, discordance: float, split: float) -> None:
    assert of_difference(samples, discordance, split) >= COVERAGE


def test_tango_alone_would_not_where_nearly_all_change_the_same_way() -> None:
    assert of_tango(20, 0.95, 1.0) < COVERAGE
    assert of_tango(32, 0.995, 1.0) < 0.86
    assert of_difference(32, 0.995, 1.0) >= COVERAGE


def test_that_is_mended_at_the_outer_end_alone_and_by_no_more_than_is_needed() -> None:
    base, edited = np.repeat([0.0, 1.0, 0.0], [15, 3, 2]), np.repeat([1.0, 0.0, 0.0], [15, 3, 2])
    plain, gains, losses = tango(15, 3, 20, 0.95), clopper_pearson(15, 20, 0.95), clopper_pearson(3, 20, 0.95)
    assert gains.high - losses.low > plain.high
    assert ends(paired_interval(base, edited, range(20), 0.95)) == (plain.low, gains.high - losses.low)
    assert ends(paired_interval(edited, base, range(20), 0.95)) == (losses.low - gains.high, -plain.low)
    half = np.repeat([1.0, 0.0], [10, 10])
    assert paired_interval(np.zeros(20), half, range(20), 0.95) == tango(10, 0, 20, 0.95)


@pytest.mark.nightly
@pytest.mark.parametrize("samples", [10, 32, 100])
def test_intervals_of_differences_hold_the_truth_between_those_points_too(samples: int) -> None:
    lowest = min(
        of_difference(samples, discordance, split)
        for discordance in (*np.arange(0.005, 0.1, 0.005), *np.arange(0.1, 0.9, 0.05), *np.arange(0.9, 1.001, 0.005))
        for split in (1.0, 0.99, 0.9, 0.75, 0.5)
    )
    # Of 100 samples where 5.5 % change, all of them the same way, Tango's interval holds the truth in 92.75 %.
    assert lowest >= 0.925


@pytest.mark.parametrize("samples", SIZES)
def test_intervals_of_rates_hold_the_truth_often_enough(samples: int) -> None:
    assert min(of_rate(samples, rate) for rate in RATES) >= COVERAGE


@pytest.mark.slow
@pytest.mark.parametrize("items", ITEMS)
@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_intervals_of_clustered_samples_hold_the_truth_often_enough(items: int, correlation: float) -> None:
    for rate in CLUSTERED_RATES:
        assert of_clustered_rate(items, correlation, rate) >= COVERAGE
        assert of_clustered_difference(items, correlation, rate, 1.0) >= COVERAGE


@pytest.mark.nightly
@pytest.mark.parametrize(
    "items", [pytest.param(10, marks=pytest.mark.slow), *(pytest.param(n, marks=pytest.mark.nightly) for n in ITEMS)]
)
@pytest.mark.parametrize("correlation", CORRELATIONS)
@pytest.mark.parametrize("split", SPLITS)
def test_intervals_of_clustered_samples_do_so_for_every_split(items: int, correlation: float, split: float) -> None:
    for rate in (0.005, *CLUSTERED_RATES, 0.8):
        assert of_clustered_difference(items, correlation, rate, split, repetitions=10_000) >= COVERAGE


def test_intervals_that_are_not_told_of_clusters_are_too_narrow() -> None:
    # Half of what wordings do is their item's: the variance is 1 + 4 × 0.5 = 3 times that of independent samples, and
    # ±1.96 standard deviations are ±1.13 of the real ones, which hold 74 %.
    assert of_clustered_rate(200, 0.5, 0.5, clustered=False) == pytest.approx(0.74, abs=0.03)
    assert of_clustered_difference(200, 0.5, 0.5, 0.5, clustered=False) == pytest.approx(0.74, abs=0.03)


@pytest.mark.slow
def test_the_bootstrap_holds_the_truth_often_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 999)
    assert of_bootstrap(50, 0.5, 300) >= COVERAGE
    assert of_bootstrap(50, 0.5, 100, clustered=False) < 0.85


@pytest.mark.nightly
@pytest.mark.parametrize(("items", "least"), [(5, 0.88), (20, 0.9), (50, COVERAGE)])
def test_the_bootstrap_of_few_items_holds_it_less_often(items: int, least: float) -> None:
    assert of_bootstrap(items, 0.5, 500) >= least


@pytest.mark.parametrize("samples", [1, 10, 32, 1_000])
def test_no_change_of_independent_samples_gives_what_is_known(samples: int) -> None:
    same = np.arange(samples) % 2
    limit = Z**2 / (samples + Z**2)
    assert ends(paired_interval(same, same, range(samples), 0.95)) == pytest.approx((-limit, limit), rel=1e-12)


def test_samples_that_share_no_cluster_have_no_design_effect() -> None:
    numbers = np.random.default_rng(0)
    for samples in (1, 2, 7, 1_000):
        assert design_effect(numbers.integers(-1, 2, samples), numbers.permutation(samples)) == 1


def test_without_any_change_whole_clusters_count_as_one_sample() -> None:
    nothing, clusters = np.zeros(320), np.arange(320) // 10
    assert design_effect(nothing, clusters) == 10
    assert ends(paired_interval(nothing, nothing, clusters, 0.95)) == pytest.approx(ends(tango(0, 0, 32, 0.95)))
    assert ends(rate_interval(nothing, clusters, 0.95)) == pytest.approx(ends(clopper_pearson(0, 32, 0.95)))


def test_few_changes_one_by_one_are_not_yet_proof_that_clusters_do_not_matter() -> None:
    change = (np.arange(320) % 32 == 0).astype(np.float64)
    assert 320 / design_effect(change, np.arange(320) // 10) == pytest.approx(59, abs=0.5)


def test_clusters_of_several_sizes_count_by_their_samples() -> None:
    # 4 + 1 + 1 samples: a sample is in a cluster of (4 × 4 + 1 + 1) / 6 = 3 on average.
    assert design_effect(np.zeros(6), [0, 0, 0, 0, 1, 2]) == pytest.approx(3)


def test_with_much_data_the_design_effect_is_the_usual_one() -> None:
    numbers = np.random.default_rng(0)
    items, correlation = 20_000, 0.3
    alike = numbers.random((items, 1)) < correlation
    values = np.where(alike, numbers.random((items, 1)), numbers.random((items, WORDINGS))) < 0.2
    clusters = np.arange(items * WORDINGS) // WORDINGS
    assert design_effect(values.ravel(), clusters) == pytest.approx(1 + (WORDINGS - 1) * correlation, abs=0.05)


def test_clusters_whose_changes_cancel_out_are_not_thought_to_help() -> None:
    assert design_effect([1, -1] * 1_000, np.arange(2_000) // 2) == 1


Table = tuple[Array, Array, Array]
"""Base and edited, 0 and 1, and clusters."""


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Samples of clusters of any sizes, that change rarely or often."""
    size = draw(st.integers(1, 60))
    pairs = draw(st.sampled_from([[(0, 0), (1, 1)], [(0, 0), (1, 1), (1, 0)], [(0, 0), (1, 0), (0, 1)], [(1, 0)]]))
    chosen = np.array(draw(st.lists(st.sampled_from(pairs), min_size=size, max_size=size)), dtype=np.float64)
    clusters = np.array(draw(st.lists(st.integers(0, draw(st.integers(0, 20))), min_size=size, max_size=size)))
    return chosen[:, 0], chosen[:, 1], clusters


confidences = st.floats(0.5, 0.999)


@given(tables(), confidences)
@some
def test_intervals_hold_the_estimate_and_stay_in_range(table: Table, confidence: float) -> None:
    base, edited, clusters = table
    change, rate = paired_interval(base, edited, clusters, confidence), rate_interval(edited, clusters, confidence)
    difference = edited.mean() - base.mean()
    assert -1 <= change.low <= difference + ROUNDING and difference - ROUNDING <= change.high <= 1
    assert 0 <= rate.low <= edited.mean() + ROUNDING and edited.mean() - ROUNDING <= rate.high <= 1


@given(tables(), confidences)
@some
def test_swapping_the_models_mirrors_the_interval(table: Table, confidence: float) -> None:
    base, edited, clusters = table
    found, swapped = (paired_interval(*pair, clusters, confidence) for pair in ((base, edited), (edited, base)))
    assert ends(found) == (-swapped.high, -swapped.low)


@given(tables(), confidences, confidences)
@some
def test_more_confidence_is_wider(table: Table, one: float, other: float) -> None:
    assume(abs(one - other) > 1e-6)
    base, edited, clusters = table
    narrow, wide = (paired_interval(base, edited, clusters, c) for c in sorted((one, other)))
    assert wide.low <= narrow.low + ROUNDING and narrow.high <= wide.high + ROUNDING
    assert wide.high - wide.low > narrow.high - narrow.low
    narrow, wide = (rate_interval(edited, clusters, c) for c in sorted((one, other)))
    assert wide.low <= narrow.low + ROUNDING and narrow.high <= wide.high + ROUNDING
    assert wide.high - wide.low > narrow.high - narrow.low


@given(tables(), confidences, st.floats(1, 1e6), st.floats(1, 10))
@some
def test_more_times_the_samples_are_never_wider(table: Table, confidence: float, times: float, more: float) -> None:
    base, edited, clusters = table
    wide, narrow = (paired_interval(base, edited, clusters, confidence, t) for t in (times, times * more))
    assert wide.low <= narrow.low + ROUNDING and narrow.high <= wide.high + ROUNDING
    wide, narrow = (rate_interval(edited, clusters, confidence, t) for t in (times, times * more))
    assert wide.low <= narrow.low + ROUNDING and narrow.high <= wide.high + ROUNDING


@given(tables(), st.randoms(use_true_random=False))
@some
def test_the_order_of_samples_changes_nothing(table: Table, random: Random) -> None:
    base, edited, clusters = table
    order = random.sample(range(len(base)), len(base))
    mixed_base, mixed_edited, mixed_clusters = base[order], edited[order], clusters[order]
    found = paired_interval(base, edited, clusters, 0.95), rate_interval(edited, clusters, 0.95)
    assert paired_interval(mixed_base, mixed_edited, mixed_clusters, 0.95) == found[0]
    assert rate_interval(mixed_edited, mixed_clusters, 0.95) == found[1]


def test_many_times_the_samples_are_as_many_samples() -> None:
    base, edited = np.repeat([0.0, 1, 0, 1], [30, 12, 7, 1]), np.repeat([0.0, 1, 1, 0], [30, 12, 7, 1])
    once = paired_interval(base, edited, range(50), 0.95, times=4)
    assert ends(once) == pytest.approx(
        ends(paired_interval(np.tile(base, 4), np.tile(edited, 4), range(200), 0.95)), abs=1e-12
    )
    assert ends(rate_interval(edited, range(50), 0.95, times=4)) == pytest.approx(
        ends(rate_interval(np.tile(edited, 4), range(200), 0.95)), abs=1e-12
    )


@pytest.mark.parametrize("wrong", [[0, 0.5, 1], [0, 1, math.nan], [2, 0, 1]])
def test_what_is_no_yes_or_no_is_refused(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match="bootstrap_interval"):
        rate_interval(wrong, range(3), 0.95)
    with pytest.raises(ValueError, match="bootstrap_interval"):
        paired_interval([0, 0, 0], wrong, range(3), 0.95)


def test_samples_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="3 samples have 2 clusters"):
        rate_interval([0, 1, 1], [0, 1], 0.95)
    with pytest.raises(ValueError, match="0 samples have 0 clusters"):
        bootstrap_interval(mean, np.empty((0, 1)), [], 0.95)
    with pytest.raises(ValueError, match="2 samples of the base cannot be paired with 1"):
        paired_interval([0, 1], [1], [0, 1], 0.95)


def mean(values: Array) -> float:
    return float(values[:, 0].mean())


def normal(samples: int, columns: int = 1) -> Array:
    return np.random.default_rng(0).normal(3, 2, (samples, columns))


def test_the_bootstrap_of_a_mean_of_much_data_is_that_of_the_textbook() -> None:
    values = normal(2_000)
    half = Z * values.std(ddof=1) / math.sqrt(2_000)
    found = bootstrap_interval(mean, values, range(2_000), 0.95)
    assert ends(found) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05 * half)


@pytest.mark.parametrize("samples", [10, 15, 20])
def test_the_bootstrap_of_few_samples_is_as_wide_as_students(samples: int) -> None:
    values = normal(samples)
    half = student.ppf(0.975, samples - 1) * values.std(ddof=1) / math.sqrt(samples)
    found = bootstrap_interval(mean, values, range(samples), 0.95)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.02)


def test_the_bootstrap_draws_clusters_whole() -> None:
    values, clusters = np.repeat(normal(50), WORDINGS, axis=0), np.arange(50 * WORDINGS) // WORDINGS
    found = bootstrap_interval(mean, values, clusters, 0.95)
    assert ends(found) == pytest.approx(ends(bootstrap_interval(mean, values[::WORDINGS], range(50), 0.95)))


def test_the_bootstrap_takes_every_sample_of_clusters_of_any_size() -> None:
    clusters = np.repeat(np.arange(12), np.arange(1, 13))
    seen: set[tuple[int, ...]] = set()

    def statistic(values: Array) -> float:
        drawn = values[:, 0].astype(int)
        for cluster in set(drawn.tolist()):
            assert (drawn == cluster).sum() % (cluster + 1) == 0
        seen.add(tuple(drawn))
        return float(values[:, 1].mean())

    order = np.random.default_rng(1).permutation(len(clusters))
    values = np.stack([clusters, normal(len(clusters))[:, 0]], axis=1)
    found = bootstrap_interval(statistic, values[order], clusters[order], 0.95)
    assert len(seen) > 1_000
    assert found.low < values[:, 1].mean() < found.high


def test_the_bootstrap_of_the_same_samples_is_the_same_in_any_order() -> None:
    values, clusters = normal(60), np.arange(60) // 3
    order = np.random.default_rng(1).permutation(60)
    found = bootstrap_interval(mean, values, clusters, 0.95)
    assert found == bootstrap_interval(mean, values, clusters, 0.95)
    assert ends(bootstrap_interval(mean, values[order], clusters[order], 0.95)) == pytest.approx(ends(found))


def test_more_confidence_makes_the_bootstrap_wider() -> None:
    widths = [
        found.high - found.low
        for found in (bootstrap_interval(mean, normal(30), range(30), c) for c in (0.5, 0.9, 0.95, 0.999, 1 - 1e-9))
    ]
    assert widths == sorted(widths) and math.isfinite(widths[-1])


@pytest.mark.parametrize("value", [0.0, 0.1, -7.25])
def test_the_bootstrap_of_constant_values_is_the_value_twice(value: float) -> None:
    found = bootstrap_interval(mean, np.full((40, 1), value), np.repeat(np.arange(10), 4), 0.95)
    assert ends(found) == pytest.approx((value, value), abs=1e-15)


def test_the_bootstrap_of_a_median_of_ties_has_an_interval() -> None:
    # Leaving out one sample never moves this median, so that there is no acceleration; drawing anew does.
    values = np.repeat([0.0, 1.0], [13, 17])[:, None]
    found = bootstrap_interval(lambda drawn: float(np.median(drawn)), values, range(30), 0.95)
    assert ends(found) == (0, 1)


def test_the_bootstrap_says_nothing_of_too_few_clusters() -> None:
    nothing = (-math.inf, math.inf)
    assert ends(bootstrap_interval(mean, normal(40), np.zeros(40), 0.95)) == nothing
    assert ends(bootstrap_interval(mean, normal(40), np.arange(40) % 4, 0.95)) == nothing
    assert ends(bootstrap_interval(mean, normal(40), np.arange(40) % 5, 0.95)) != nothing


def test_the_bootstrap_says_nothing_where_a_resample_has_no_value() -> None:
    values = np.stack([np.ones(10), np.arange(10) == 0], axis=1)

    def ratio(drawn: Array) -> float:
        return float(drawn[:, 0].sum() / drawn[:, 1].sum())

    assert ends(bootstrap_interval(ratio, values, range(10), 0.95)) == (-math.inf, math.inf)


def test_the_bootstrap_holds_the_metric_though_no_resample_reaches_it() -> None:
    found = bootstrap_interval(lambda drawn: float(len(np.unique(drawn))), normal(30), range(30), 0.95)
    assert found.low < 25 and found.high == 30
    found = bootstrap_interval(lambda drawn: -float(len(np.unique(drawn))), normal(30), range(30), 0.95)
    assert found.low == -30 and found.high > -25


def test_the_bootstrap_of_two_thousand_samples_takes_about_a_second() -> None:
    values = np.abs(normal(2_000, 3))
    begin = time.process_time()
    found = bootstrap_interval(perplexity_change, values, np.arange(2_000) // WORDINGS, 0.95)
    assert math.isfinite(found.low) and time.process_time() - begin < 4  # of a machine that may be busy


@pytest.mark.parametrize("margin", [0.01, 0.03, 0.1])
def test_samples_needed_where_nothing_changes_are_those_of_the_formula(margin: float) -> None:
    nothing = np.zeros(20)

    def decided(times: float) -> bool:
        return paired_interval(nothing, nothing, range(20), 0.95, times).low >= -margin

    exact = Z**2 * (1 - margin) / margin
    found = samples_needed(decided, 20)
    assert found is not None and exact <= found <= 1.01 * exact + 2


def test_samples_needed_are_those_there_are_where_they_decide() -> None:
    assert samples_needed(lambda _: True, 32) == 32


def test_no_size_is_given_where_none_decides() -> None:
    assert samples_needed(lambda _: False, 32) is None
    assert samples_needed(lambda times: times * 100 >= 2_000, 100, most=1_999) is None
    assert samples_needed(lambda times: times * 100 >= 2_000, 100, most=2_000) == 2_000
    assert samples_needed(lambda _: False, 32, most=10) is None


@given(st.integers(1, 10_000), st.floats(1, 900))
@some
def test_samples_needed_are_near_the_smallest(samples: int, threshold: float) -> None:
    asked = []

    def decided(times: float) -> bool:
        asked.append(times)
        return times >= threshold

    found = samples_needed(decided, samples)
    assert found is not None and samples * threshold - ROUNDING <= found <= samples * threshold * 1.01 + 2
    assert len(asked) < 20
