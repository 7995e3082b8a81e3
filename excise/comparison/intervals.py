"""Confidence intervals of a rate, of a paired difference and of any metric, where samples may share clusters.

Pure: numbers in, numbers out. Samples of one cluster (the five wordings of one item) are not independent. A yes/no
metric is therefore judged at its effective size, the samples over their design effect (Kish 1965, Survey Sampling), as
Korn and Graubard 1998 (Survey Methodology 24:193) do; any other metric by drawing whole clusters. What each covers is
in docs/statistics.md.

Throughout, a yes/no metric's values are ``[samples]``, each 0 or 1; clusters are ``[samples]`` integers, the same for
samples that belong together; confidence is as in 0.95; and `times` is as if there were that many times the samples,
with the same rates and design effect. No samples, not as many of each, or other values raise `ValueError`.
"""

import math
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, ndtr, ndtri, stdtrit
from scipy.stats import DegenerateDataWarning, binomtest, bootstrap

from schemas.evidence import Interval

Array = NDArray[np.float64]

RESAMPLES = 9_999
FEWEST_CLUSTERS = 5
"""Fewer have so few different resamples that a bootstrap interval of them would say too much."""

_SEED = 0
_HALVINGS = 60
_CLOSE_ENOUGH = 1.01


def rate_interval(values: ArrayLike, clusters: ArrayLike, confidence: float, times: float = 1.0) -> Interval:
    """The interval of a yes/no rate: Clopper and Pearson's at the effective size."""
    answers = _answers(values)
    size = times * len(answers) / design_effect(answers, clusters)
    return clopper_pearson(float(answers.mean()) * size, size, confidence)


def paired_interval(
    base: ArrayLike, edited: ArrayLike, clusters: ArrayLike, confidence: float, times: float = 1.0
) -> Interval:
    """The interval of the difference, edited minus base, of a yes/no metric: Tango's at the effective size.

    Where nearly all samples changed the same way, Tango's is too short at its outer end, as Wilson's is near 0 and 1:
    it takes the few others for more than they show. So where more than half gained (or lost) that end is at least as
    far out as Clopper and Pearson's intervals of the share gained and of the share lost allow.
    """
    before, after = _answers(base), _answers(edited)
    if len(before) != len(after):
        raise ValueError(f"{len(before)} samples of the base cannot be paired with {len(after)} of the edited model")
    change = after - before
    size = times * len(change) / design_effect(change, clusters)
    gained, lost = float((change > 0).mean()), float((change < 0).mean())
    found = tango(gained * size, lost * size, size, confidence)
    if max(gained, lost) <= 0.5:
        return found
    gains, losses = (clopper_pearson(share * size, size, confidence) for share in (gained, lost))
    if gained > lost:
        return Interval(low=found.low, high=max(found.high, gains.high - losses.low))
    return Interval(low=min(found.low, gains.low - losses.high), high=found.high)


def design_effect(values: ArrayLike, clusters: ArrayLike) -> float:
    """The variance of a mean of clustered values over that of as many independent ones; at least 1.

    Where hardly anything differs there is nothing to estimate it from. So one cluster of the mean size (as a sample
    meets it, the size-weighted mean) that moved as a whole is added to those seen. Without any difference the effective
    size is then the number of clusters, and with much data the estimate is the usual one.

    Args:
        values: ``[samples]``: 0 and 1 for a rate; -1, 0 and 1 for a paired difference.
    """
    numbers = np.asarray(values, dtype=np.float64)
    inverse, sizes = _clusters(clusters, len(numbers))
    mean, size = numbers.mean(), float(sizes @ sizes) / len(numbers)
    # Sums that are rounded once do not depend on the order of samples, and are equal where no two share a cluster.
    together = math.fsum((np.bincount(inverse, weights=numbers) - sizes * mean) ** 2)
    apart = math.fsum((numbers - mean) ** 2)
    return max(1.0, (together + size**2) / (apart + size))


def tango(gained: float, lost: float, samples: float, confidence: float) -> Interval:
    """The paired score interval of Tango 1998 (Statistics in Medicine 17:891): the share gained minus the share lost.

    Args:
        gained: samples that are yes after the edit and were no before; like every count here it may be a fraction.
        lost: samples that were yes before and are no longer.
        samples: all of them, with those that did not change.
    """
    z = float(ndtri((1 + confidence) / 2))
    # What one model gains the other loses: the lower end is the upper one of the models swapped.
    return Interval(low=-_tango_upper(lost, gained, samples, z), high=_tango_upper(gained, lost, samples, z))


def _tango_upper(gained: float, lost: float, samples: float, z: float) -> float:
    """The largest difference that the score test keeps, by halving what lies between the estimate and 1."""
    low, high = (gained - lost) / samples, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        # The likeliest share lost if the difference is `middle` solves 2 n q² + half q - product = 0.
        half = (2 * samples - gained + lost) * middle - gained - lost
        product = lost * middle * (1 - middle)
        root = math.sqrt(max(0.0, half**2 + 8 * samples * product))
        share = (root - half) / (4 * samples)
        variance = max(0.0, samples * (2 * share + middle * (1 - middle)))
        if samples * middle - gained + lost <= z * math.sqrt(variance):
            low = middle
        else:
            high = middle
    return high


def clopper_pearson(yes: float, samples: float, confidence: float) -> Interval:
    """The exact interval of Clopper and Pearson 1934 (Biometrika 26:404) of a rate; counts may be fractions."""
    tail, no = (1 - confidence) / 2, samples - yes
    low = float(betaincinv(yes, no + 1, tail)) if yes > 0 else 0.0
    high = float(betaincinv(yes + 1, no, 1 - tail)) if no > 0 else 1.0
    return Interval(low=low, high=high)


def bootstrap_interval(
    statistic: Callable[[Array], float], values: ArrayLike, clusters: ArrayLike, confidence: float
) -> Interval:
    """The bias-corrected and accelerated bootstrap interval (Efron 1987, JASA 82:171) of any metric.

    Clusters are drawn whole. A bootstrap of few is too narrow by as much as the normal distribution is narrower than
    Student's, and the variance of a sample smaller than its population's; the confidence is raised by that, after
    Hesterberg 2015 (The American Statistician 69:371). The random numbers are seeded: the same samples give the same
    interval.

    Args:
        statistic: maps ``[samples, k]`` to the metric. It is called once a resample, with as many samples as the drawn
            clusters have. For a paired difference, base and edited values are columns side by side.
        values: ``[samples, k]``.

    Returns:
        An interval that holds the metric; the metric twice where no resample moves it. (-inf, inf) where nothing can be
        said: of fewer than five clusters, or where some resample has no finite metric.
    """
    nothing = Interval(low=-math.inf, high=math.inf)
    table = np.asarray(values, dtype=np.float64)
    inverse, sizes = _clusters(clusters, len(table))
    if len(sizes) < FEWEST_CLUSTERS:
        return nothing
    # One row a cluster, of its samples' places, filled up with -1.
    members = np.full((len(sizes), int(sizes.max())), -1)
    order = np.argsort(inverse, kind="stable")
    members[np.arange(members.shape[1]) < sizes[:, None]] = order

    def resampled(drawn: Array) -> float:
        places = members[drawn.astype(np.intp)].ravel()
        return statistic(table[places[places >= 0]])

    t = math.sqrt(len(sizes) / (len(sizes) - 1)) * float(stdtrit(len(sizes) - 1, (1 + confidence) / 2))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", DegenerateDataWarning)
        found = bootstrap(
            (np.arange(len(sizes)),),
            resampled,
            vectorized=False,
            n_resamples=RESAMPLES,
            batch=1_000,
            confidence_level=1 - 2 * float(ndtr(-t)),
            method="BCa",
            rng=np.random.default_rng(_SEED),
        )
        value = float(statistic(table))
    low, high = found.confidence_interval
    seen = found.bootstrap_distribution
    if not np.isfinite(seen).all():
        return nothing
    if math.isnan(low) or math.isnan(high):
        # As for a median of ties, where leaving out a cluster changes nothing and so tells of no acceleration.
        low, high = np.quantile(seen, [ndtr(-t), ndtr(t)])
    return Interval(low=min(float(low), value), high=max(float(high), value))


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided p-value of McNemar 1947 (Psychometrika 12:153): gaining is as likely as losing."""
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def samples_needed(decided: Callable[[float], bool], samples: int, most: int = 10_000_000) -> int | None:
    """How many samples would decide, to within 1 %; None where ``most`` would not.

    Args:
        decided: whether that many times the samples would. Where it holds, it holds for more.
        samples: how many there are; the answer is at least that.
        most: the largest size that is tried.
    """
    if decided(1.0):
        return samples
    low, high = 1.0, most / samples
    if not decided(high):
        return None
    while high / low > _CLOSE_ENOUGH:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if decided(middle) else (middle, high)
    return math.ceil(samples * high)


def _answers(values: ArrayLike) -> Array:
    answers = np.asarray(values, dtype=np.float64)
    if not ((answers == 0) | (answers == 1)).all():
        raise ValueError("a yes/no metric has values of 0 and 1 alone; any other has a bootstrap_interval")
    return answers


def _clusters(clusters: ArrayLike, samples: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """For each sample the place of its cluster, and for each cluster its size."""
    _, inverse, sizes = np.unique(np.asarray(clusters), return_inverse=True, return_counts=True)
    if samples == 0 or len(inverse) != samples:
        raise ValueError(f"{samples} samples have {len(inverse)} clusters: give some, and each its cluster")
    return inverse, sizes
