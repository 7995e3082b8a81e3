"""A race of trials: all are asked some prompts, and only those that these do not rule out are asked more. Prompts of
which the base is least sure are asked first, because a few of these may hold most of the drift; the others are drawn
at random. What is measured on some of the prompts stands for all of them, by strata, and so do its intervals."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from scipy.stats import t as student
from torch import Tensor

SHARES = (1 / 8, 1 / 4, 1.0)
"""Of the drawn prompts, asked in each round so far."""
LEAST_DRAWN = 6
UNSURE = 0.05
"""The base is unsure whether to refuse a prompt if it does so with a probability between this and one minus this."""
MOST_UNSURE = 1 / 8
"""Share of the prompts that are asked first for that."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate of a mean over all prompts, with its 95 % interval."""

    low: float
    mean: float
    high: float


@dataclass(frozen=True)
class Strata:
    """All prompts of one kind in the order in which a race asks them."""

    unsure: tuple[int, ...]
    """Asked in every round."""
    drawn: tuple[int, ...]

    @classmethod
    def of(cls, probabilities: Tensor, seed: int) -> "Strata":
        """By how likely the base refuses each, ``[prompts]``; drawn by a seed."""
        numbers = range(len(probabilities))
        by_doubt = sorted(numbers, key=lambda row: abs(float(probabilities[row]) - 0.5))
        unsure = [row for row in by_doubt if UNSURE < float(probabilities[row]) < 1 - UNSURE]
        first = tuple(unsure[: max(1, int(MOST_UNSURE * len(numbers)))])
        others = [row for row in numbers if row not in first]
        random.Random(seed).shuffle(others)
        return cls(first, tuple(others))

    def asked(self, share: float) -> list[int]:
        """The prompts that are asked when so large a share of the drawn ones is."""
        count = min(len(self.drawn), max(LEAST_DRAWN, round(share * len(self.drawn))))
        return [*self.unsure, *self.drawn[:count]]

    def weights(self, rows: Sequence[int]) -> Tensor:
        """What each of these prompts stands for, ``[rows]`` float64, one in all; the unsure ones, of which all have to
        be among them, for themselves."""
        unsure = [row in self.unsure for row in rows]
        each = len(self.drawn) / max(1, len(rows) - sum(unsure))
        return torch.tensor([1.0 if own else each for own in unsure]).double() / (len(self.unsure) + len(self.drawn))

    def interval(self, values: Tensor, rows: Sequence[int]) -> Interval:
        """Of the mean over all prompts, from its values on some, ``[rows]``."""
        mean = float((values * self.weights(rows)).sum())
        sample = values[torch.tensor([row not in self.unsure for row in rows])]
        count, all_ = len(sample), len(self.drawn)
        if count == all_:
            return Interval(mean, mean, mean)
        if count < 2:
            return Interval(-math.inf, mean, math.inf)
        # Of what is drawn without replacement from few.
        spread = all_ / (len(self.unsure) + all_) * float(sample.std()) * math.sqrt((1 - count / all_) / count)
        reach = _quantile(count - 1) * spread
        return Interval(mean - reach, mean, mean + reach)


@cache
def _quantile(degrees: int) -> float:
    return float(student.ppf((1 + CONFIDENCE) / 2, degrees))


def refuses_more(one: Tensor, other: Tensor, strata: Strata, rows: Sequence[int], limit: float) -> bool:
    """Whether one trial surely leaves more refusal than another, and more than the limit, by its probability on some
    harmful prompts, ``[rows]``."""
    return strata.interval(one, rows).low > limit and strata.interval(one - other, rows).low > 0


def removes(probabilities: Tensor, refused: Tensor, strata: Strata, rows: Sequence[int], limit: float) -> bool:
    """Whether a trial surely leaves no more refusal than the limit; `refused`: which prompts it refuses."""
    share = float((refused.double() * strata.weights(rows)).sum())
    return share <= limit and strata.interval(probabilities, rows).high <= limit


def survivors(field: Sequence[int], beats: Callable[[int, int], bool], keep: int) -> list[int]:
    """Those of a field that fewer than `keep` others beat."""
    return [one for one in field if sum(beats(other, one) for other in field if other != one) < keep]
