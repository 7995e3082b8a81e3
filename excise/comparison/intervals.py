"""Confidence intervals of rates, paired differences and other metrics; docs/statistics.md says what they cover.

Samples of one cluster (wordings of one item) are not independent. A yes/no metric is therefore judged at its effective
size, the number of samples over their design effect (Kish 1965, Survey Sampling), as in Korn and Graubard 1998 (Survey
Methodology 24:193); other metrics resample whole clusters. Values of yes/no metrics are ``[samples]``, each 0 or 1;
clusters are ``[samples]`` integers; `times` assumes a multiple of the samples with the same rates and design effect.
`ValueError` is raised for no samples, different numbers of samples, or other values."""

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
"""With fewer clusters there are too few different resamples for a bootstrap interval."""

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
    """The interval of the difference, edited minus base, of a yes/no metric: Tango's at the effective size. If more
    than half of the samples gained (or lost), its outer end would be too near, as Wilson's is near 0 and 1; it is then
    at least as far out as the Clopper-Pearson intervals of the shares gained and lost allow."""
    before, after = _answers(base), _answers(edited)
    if len(before) != len(after):
        raise ValueError(f"{len(before)} samples of the base cannot be paired with {len(after)} of the edited model")
    change = after - before
    size = times * len(change) / design_effect(change, clusters)
    gained, lost = float((change > 0).mean()), float((change < 0).mean())
    interval = tango(gained * size, lost * size, size, confidence)
    if max(gained, lost) <= 0.5:
        return interval
    gains, losses = (clopper_pearson(share * size, size, confidence) for share in (gained, lost))
    if gained > lost:
        return Interval(low=interval.low, high=max(interval.high, gains.high - losses.low))
    return Interval(low=min(interval.low, gains.low - losses.high), high=interval.high)


def design_effect(values: ArrayLike, clusters: ArrayLike) -> float:
    """The variance of a mean of clustered values (0 and 1, or differences of -1, 0 and 1) over that of as many
    independent ones; at least 1. One cluster of the size-weighted mean size that moved as a whole is added, because
    otherwise, if hardly any value differs, there is nothing to estimate it from. Without any difference the effective
    size is then the number of clusters, and with much data the estimate is the usual one."""
    numbers = np.asarray(values, dtype=np.float64)
    inverse, sizes = _clusters(clusters, len(numbers))
    mean, size = numbers.mean(), float(sizes @ sizes) / len(numbers)
    # fsum rounds once, so the order of samples does not matter, and both sums are equal if no samples share a cluster.
    between_clusters = math.fsum((np.bincount(inverse, weights=numbers) - sizes * mean) ** 2)
    between_samples = math.fsum((numbers - mean) ** 2)
    return max(1.0, (between_clusters + size**2) / (between_samples + size))


def tango(gained: float, lost: float, samples: float, confidence: float) -> Interval:
    """The paired score interval of Tango 1998 (Statistics in Medicine 17:891): the share of samples that changed from
    no to yes (`gained`) minus that of samples that changed from yes to no (`lost`); counts may be fractions."""
    z = float(ndtri((1 + confidence) / 2))
    # By symmetry the lower end is the upper one with the models swapped.
    return Interval(low=-_tango_upper(lost, gained, samples, z), high=_tango_upper(gained, lost, samples, z))


def _tango_upper(gained: float, lost: float, samples: float, z: float) -> float:
    """The largest difference that the score test accepts, by bisection between the estimate and 1."""
    low, high = (gained - lost) / samples, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        # The most likely share lost, given the difference `middle`, solves 2 n q² + half q - product = 0.
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
    """The bias-corrected and accelerated bootstrap interval (Efron 1987, JASA 82:171) of any metric, which contains it.

    `statistic` maps ``[samples, k]`` to the metric; it is called once per resample, with all samples of the drawn
    clusters. The interval is (-inf, inf) if there are fewer than five clusters or some resample's metric is not finite.
    A bootstrap of few clusters is too narrow, as the normal distribution is narrower than Student's and a sample's
    variance smaller than its population's; the confidence is raised accordingly (Hesterberg 2015, The American
    Statistician 69:371). Random numbers are seeded."""
    unknown = Interval(low=-math.inf, high=math.inf)
    table = np.asarray(values, dtype=np.float64)
    inverse, sizes = _clusters(clusters, len(table))
    if len(sizes) < FEWEST_CLUSTERS:
        return unknown
    # One row per cluster with the indices of its samples, padded with -1.
    members = np.full((len(sizes), int(sizes.max())), -1)
    order = np.argsort(inverse, kind="stable")
    members[np.arange(members.shape[1]) < sizes[:, None]] = order

    def resampled(drawn: Array) -> float:
        rows = members[drawn.astype(np.intp)].ravel()
        return statistic(table[rows[rows >= 0]])

    t = math.sqrt(len(sizes) / (len(sizes) - 1)) * float(stdtrit(len(sizes) - 1, (1 + confidence) / 2))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", DegenerateDataWarning)
        result = bootstrap(
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
    low, high = result.confidence_interval
    distribution = result.bootstrap_distribution
    if not np.isfinite(distribution).all():
        return unknown
    if math.isnan(low) or math.isnan(high):
        # No acceleration can be estimated if leaving out a cluster changes nothing, as for a median of ties.
        low, high = np.quantile(distribution, [ndtr(-t), ndtr(t)])
    return Interval(low=min(float(low), value), high=max(float(high), value))


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided p-value of McNemar 1947 (Psychometrika 12:153): gains and losses are equally likely."""
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def samples_needed(decided: Callable[[float], bool], samples: int, most: int = 10_000_000) -> int | None:
    """How many samples decide, to within 1 %; None if ``most`` do not. `decided` takes a multiple of `samples`."""
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
        raise ValueError("a yes/no metric has only values of 0 and 1; use bootstrap_interval for others")
    return answers


def _clusters(clusters: ArrayLike, samples: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """For each sample the index of its cluster, and for each cluster its size."""
    _, inverse, sizes = np.unique(np.asarray(clusters), return_inverse=True, return_counts=True)
    if samples == 0 or len(inverse) != samples:
        raise ValueError(f"{samples} samples have {len(inverse)} clusters: each sample needs one")
    return inverse, sizes
