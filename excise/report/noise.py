"""Whether a metric moved by more than chance, as far as its interval tells."""

import math
from typing import Literal

from schemas.evidence import Comparison

Movement = Literal["rose", "fell", "within noise", "unchanged", "no interval"]
"""Within noise: the interval of the difference includes 0. Unchanged: not one sample has another value."""

Change = Literal["better", "worse", "higher", "lower", "within noise", "unchanged", "no interval"]
"""The same, judged; higher and lower where nobody says which is better."""


def movement(row: Comparison) -> Movement:
    """Where a metric went, by the interval of its difference."""
    interval = row.difference_interval
    if interval is None or math.isnan(interval.low) or math.isnan(interval.high):
        return "no interval"
    if interval.low > 0:
        return "rose"
    if interval.high < 0:
        return "fell"
    return "unchanged" if row.difference == row.rose == row.fell == 0 else "within noise"


def change(row: Comparison) -> Change:
    """What that means."""
    moved = movement(row)
    if moved != "rose" and moved != "fell":
        return moved
    if row.higher_is_better is None:
        return "higher" if moved == "rose" else "lower"
    return "better" if (moved == "rose") == row.higher_is_better else "worse"


def worst_drop(row: Comparison) -> float:
    """By how much a metric may have become worse, at most, by the interval of its difference; below 0 it did not."""
    assert row.difference_interval is not None and row.higher_is_better is not None
    return -row.difference_interval.low if row.higher_is_better else row.difference_interval.high
