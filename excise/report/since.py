"""What became of the edited model's metrics between two commits, as far as two intervals tell.

The samples of both are never at hand, so the interval of the difference is made from theirs (docs/statistics.md).
"""

import math
from typing import Literal

from excise.report.noise import Change, change
from schemas.evidence import Comparison, Interval

Since = Change | Literal["new", "gone"]
"""Unchanged: the same value with the same interval."""


def since(before: Comparison | None, now: Comparison | None) -> Since:
    """What became of a metric; None where a side does not have it."""
    if before is None:
        return "new"
    if now is None:
        return "gone"
    if (before.ablated, before.ablated_interval) == (now.ablated, now.ablated_interval):
        return "unchanged"
    between = {"difference": now.ablated - before.ablated, "difference_interval": mover(before, now)}
    # How many samples rose or fell is known of the difference from the base alone.
    return change(now.model_copy(update={**between, "rose": None, "fell": None}))


def mover(before: Comparison, now: Comparison) -> Interval | None:
    """Of the edited value now less the one before, by Zou and Donner's MOVER (2008); None without both intervals.

    It takes both for independent, and so is too wide where the same samples were asked, as they mostly were.
    """
    old, new = before.ablated_interval, now.ablated_interval
    if old is None or new is None:
        return None
    difference = now.ablated - before.ablated
    return Interval(
        low=difference - math.hypot(now.ablated - new.low, old.high - before.ablated),
        high=difference + math.hypot(new.high - now.ablated, before.ablated - old.low),
    )
