"""How often intervals hold the truth, and what sizes can show: `python -m benchmarks.coverage`. Prints Markdown.

Independent samples are counted out, every possible outcome with its probability, and so are items whose wordings all
end alike. Other clustered samples and the bootstrap are simulated, with seeds. `tests/comparison/test_intervals.py`
asks the same functions for what is promised.
"""

import argparse
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from excise.comparison.intervals import (
    bootstrap_interval,
    clopper_pearson,
    paired_interval,
    rate_interval,
    tango,
)
from schemas.evidence import Interval

Array = NDArray[np.float64]

CONFIDENCE = 0.95
SIZES = (20, 50, 100, 500)
DISCORDANCES = (0.01, 0.05, 0.25, 0.95)
SPLITS = (1.0, 0.75, 0.5)
"""Which part of the samples that change gain; the rest lose."""
RATES = (*np.linspace(0, 0.05, 51), 0.1, 0.25, 0.5, 0.75, 0.95, 1.0)

WORDINGS = 5
ITEMS = (20, 50, 200)
CORRELATIONS = (0.0, 0.2, 0.5, 1.0)
CLUSTERED_RATES = (0.02, 0.1, 0.5)

_NEGLIGIBLE = 1e-7
"""Outcomes less likely than this are left out, which can only lower a coverage."""
_ROUNDING = 1e-12
_AT_ONCE = 1_000


def of_rate(items: int, rate: float, wordings: int = 1) -> float:
    """How often `rate_interval` holds the rate of independent items, whose wordings all end alike."""
    held = []
    for yes, chance in enumerate(binom.pmf(np.arange(items + 1), items, rate)):
        if chance > _NEGLIGIBLE:
            answers = _answers(yes, items, wordings)
            held.append(chance * _holds(rate_interval(answers, _clusters(items, wordings), CONFIDENCE), rate))
    return math.fsum(held)


def of_difference(items: int, discordance: float, split: float, wordings: int = 1) -> float:
    """How often `paired_interval` holds the difference of independent items, whose wordings all end alike."""

    def found(gained: int, lost: int) -> Interval:
        base, edited = _answers(lost, items, wordings), _answers(gained, items, wordings)[::-1]
        return paired_interval(base, edited, _clusters(items, wordings), CONFIDENCE)

    return _counted(items, discordance, split, found)


def of_tango(samples: int, discordance: float, split: float) -> float:
    """How often `tango` alone holds the difference of independent samples."""
    return _counted(samples, discordance, split, lambda gained, lost: tango(gained, lost, samples, CONFIDENCE))


def _counted(samples: int, discordance: float, split: float, found: Callable[[int, int], Interval]) -> float:
    """How likely an outcome is whose interval, of how many gained and lost, holds the truth."""
    truth = discordance * (2 * split - 1)
    return math.fsum(
        chance * _holds(found(gained, lost), truth) for gained, lost, chance in _outcomes(samples, discordance, split)
    )


def _outcomes(samples: int, discordance: float, split: float) -> Iterator[tuple[int, int, float]]:
    """How many samples gain, how many lose, and how likely that is, of all that is not negligible."""
    for changed, chance in enumerate(binom.pmf(np.arange(samples + 1), samples, discordance)):
        for gained, share in enumerate(binom.pmf(np.arange(changed + 1), changed, split)):
            if chance * share > _NEGLIGIBLE:
                yield gained, changed - gained, float(chance * share)


def _answers(yes: int, items: int, wordings: int) -> Array:
    return np.repeat(np.arange(items) < yes, wordings).astype(np.float64)


def _clusters(items: int, wordings: int) -> NDArray[np.int64]:
    return np.arange(items * wordings) // wordings


def _holds(found: Interval, truth: float) -> bool:
    return found.low - _ROUNDING <= truth <= found.high + _ROUNDING


def of_clustered_rate(
    items: int, correlation: float, rate: float, clustered: bool = True, repetitions: int = 2_000
) -> float:
    """How often `rate_interval` holds the rate of clustered samples; where not `clustered`, it is not told of items."""
    if clustered and correlation == 1:
        return of_rate(items, rate, WORDINGS)

    def found(outcome: NDArray[np.int64]) -> Interval:
        return rate_interval(outcome, _told(items, clustered), CONFIDENCE)

    return _simulated(items, correlation, (1 - rate, rate), repetitions, found, rate)


def of_clustered_difference(
    items: int, correlation: float, discordance: float, split: float, clustered: bool = True, repetitions: int = 2_000
) -> float:
    """How often `paired_interval` holds the difference of clustered samples; where not `clustered`, it is not told."""
    if clustered and correlation == 1:
        return of_difference(items, discordance, split, WORDINGS)

    def found(outcome: NDArray[np.int64]) -> Interval:
        return paired_interval(outcome == 2, outcome == 1, _told(items, clustered), CONFIDENCE)

    chances = (1 - discordance, discordance * split, discordance * (1 - split))
    return _simulated(items, correlation, chances, repetitions, found, chances[1] - chances[2])


def _told(items: int, clustered: bool) -> NDArray[np.int64]:
    return _clusters(items, WORDINGS) if clustered else np.arange(items * WORDINGS)


def _simulated(
    items: int,
    correlation: float,
    chances: Sequence[float],
    repetitions: int,
    found: Callable[[NDArray[np.int64]], Interval],
    truth: float,
) -> float:
    """The share of simulated runs whose interval holds the truth.

    In as many items as the correlation says all wordings end alike, in the others each for itself: two wordings of an
    item then have that intraclass correlation. Runs with the same items in another order are asked once.
    """
    numbers = np.random.default_rng(0)
    places = len(chances) ** np.arange(WORDINGS)
    runs: Counter[bytes] = Counter()
    for _ in range(repetitions // _AT_ONCE):
        each, together = numbers.random((_AT_ONCE, items, WORDINGS)), numbers.random((_AT_ONCE, items, 1))
        alike = numbers.random((_AT_ONCE, items, 1)) < correlation
        outcomes = np.searchsorted(np.cumsum(chances[:-1]), np.where(alike, together, each), side="right")
        runs.update(map(bytes, np.sort(np.sort(outcomes) @ places).astype(np.uint8)))

    def outcome(run: bytes) -> NDArray[np.int64]:
        return (np.frombuffer(run, dtype=np.uint8)[:, None].astype(np.int64) // places % len(chances)).ravel()

    return sum(count for run, count in runs.items() if _holds(found(outcome(run)), truth)) / repetitions


def of_bootstrap(items: int, correlation: float, repetitions: int, clustered: bool = True) -> float:
    """How often `bootstrap_interval` holds the change of a perplexity: log-normal losses a word, texts of all lengths.

    What is shared by an item's wordings differs between base and edited model, as what is not does.
    """
    numbers = np.random.default_rng(0)
    truth = math.exp(_mean_loss(2.05)) - math.exp(_mean_loss(2.0))
    clusters = _told(items, clustered)
    held = 0
    for _ in range(repetitions):
        shared, base, edited = (_correlated(numbers, items, correlation) for _ in range(3))
        words = numbers.integers(5, 60, items * WORDINGS).astype(np.float64)
        losses = [np.log(mean) + 0.5 * (0.8 * shared + 0.6 * own) for mean, own in ((2.0, base), (2.05, edited))]
        values = np.stack([*(np.exp(loss) * words for loss in losses), words], axis=1)
        held += _holds(bootstrap_interval(perplexity_change, values, clusters, CONFIDENCE), truth)
    return held / repetitions


def perplexity_change(values: Array) -> float:
    """The edited model's perplexity minus the base's, of ``[samples, 3]``: both losses, and words."""
    base, edited, words = values.sum(axis=0)
    return math.exp(edited / words) - math.exp(base / words)


def _mean_loss(median: float) -> float:
    return median * math.exp(0.5**2 / 2)


def _correlated(numbers: np.random.Generator, items: int, correlation: float) -> Array:
    """Standard normal numbers, ``[samples]``, those of an item with that correlation."""
    item, own = numbers.standard_normal((items, 1)), numbers.standard_normal((items, WORDINGS))
    return (math.sqrt(correlation) * item + math.sqrt(1 - correlation) * own).ravel()


def independent() -> None:
    """The table of independent samples: the worst of all splits, and of all rates."""
    print("| samples | " + " | ".join(f"{discordance:.0%} change" for discordance in DISCORDANCES) + " | a rate |")
    print("| ---: " * (len(DISCORDANCES) + 2) + "|")
    for samples in SIZES:
        cells = []
        for discordance in DISCORDANCES:
            ours = min(of_difference(samples, discordance, split) for split in SPLITS)
            plain = min(of_tango(samples, discordance, split) for split in SPLITS)
            cells.append(f"{ours:.3f}" + (f" ({plain:.3f})" if round(ours, 3) != round(plain, 3) else ""))
        print(f"| {samples} | {' | '.join(cells)} | {min(of_rate(samples, rate) for rate in RATES):.3f} |", flush=True)


def clustered() -> None:
    """The table of clustered samples: the worst of all rates, discordances and splits."""
    print("| items | correlation | a difference | ignoring items | a rate | ignoring items |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for items, correlation in itertools.product(ITEMS, CORRELATIONS):
        cells = [
            min(
                of_clustered_difference(items, correlation, discordance, split, told, 10_000)
                for discordance, split in itertools.product(CLUSTERED_RATES, SPLITS)
            )
            for told in (True, False)
        ]
        cells += [
            min(of_clustered_rate(items, correlation, rate, told, 10_000) for rate in CLUSTERED_RATES)
            for told in (True, False)
        ]
        print(f"| {items} | {correlation} | {' | '.join(f'{cell:.3f}' for cell in cells)} |", flush=True)


def bootstrapped() -> None:
    """The table of the bootstrap: the change of a perplexity, with a correlation of 0.5 within items."""
    print("| items | a change of perplexity |\n| ---: | ---: |")
    for items in (5, 10, 20, 50, 100):
        print(f"| {items} | {of_bootstrap(items, 0.5, 1_000):.3f} |", flush=True)


def sizes() -> None:
    """The table of what sizes can show in the best case: nothing changes, or no answer is a yes."""
    print("| independent samples | no change: less than | no yes: less than |\n| ---: | ---: | ---: |")
    for samples in (10, 32, 64, 100, 200, 400, 1_000):
        unchanged = tango(0, 0, samples, CONFIDENCE).high
        print(f"| {samples} | {unchanged:.4f} | {clopper_pearson(0, samples, CONFIDENCE).high:.4f} |")


PARTS: dict[str, Callable[[], None]] = {
    "independent": independent,
    "clustered": clustered,
    "bootstrap": bootstrapped,
    "sizes": sizes,
}


def main() -> None:
    """Print the parts that are asked for."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    for part in arguments.parse_args().parts:
        PARTS[part]()
        print()


if __name__ == "__main__":
    main()
