"""Intervals as they are drawn: where each of their parts lies, in hundredths of the width."""

import math
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from excise.report.conclusions import DRIFT
from schemas.evidence import Comparison, GateVerdict, Interval
from schemas.params.gates import LIMITS

STEPS = [1, 2, 5, 10]
"""Of round numbers."""


@dataclass(frozen=True)
class Axis:
    """The numbers at both ends of a drawing."""

    first: float
    last: float

    def place(self, value: float) -> float:
        """Where a value lies; what is beyond an end lies at that end."""
        return round(100 * min(1.0, max(0.0, (value - self.first) / (self.last - self.first))), 2)


@dataclass(frozen=True)
class Drawing:
    """An interval on its axis."""

    axis: Axis
    low: float
    high: float
    point: float
    neutral: float | None
    """Where nothing differs from the base; None where that is not on the axis."""
    limit: float | None
    """Of a gate; None where that is not on the axis."""
    allowed: tuple[float, float] | None
    """What the gate allows: from where, and how far."""


def draw_difference(row: Comparison, gates: list[GateVerdict], axis: Axis | None) -> Drawing | None:
    """A difference beside 0 and beside the gate that limits it; None where there is no interval."""
    if axis is None or row.difference is None or row.difference_interval is None:
        return None
    limits = {gate.bound: gate.limit for gate in gates if gate.metric == row.metric}
    falls = "max_drop" in limits
    limit = -limits["max_drop"] if falls else limits.get("max_rise")
    return _draw(row.difference_interval, row.difference, axis, 0.0, limit, above=falls)


def draw_drift(row: Comparison) -> Drawing | None:
    """Drift beside that of the base itself, on an axis of its own; None where there is no interval."""
    if row.ablated_interval is None or not _finite(row.ablated_interval, row.ablated):
        return None
    known = DRIFT.get(row.metric)
    neutral = known.neutral if known else 0.0
    low, high = row.ablated_interval.low, row.ablated_interval.high
    axis = _around(min(neutral, low), max(neutral, high))
    if known is not None and known.large < neutral and high <= neutral:
        axis = Axis(axis.first, neutral)
    elif low >= neutral:
        axis = Axis(neutral, axis.last)
    return _draw(row.ablated_interval, row.ablated, axis, neutral)


def draw_gate(gate: GateVerdict) -> Drawing | None:
    """What a gate judges beside its limit; None where there is no interval. A drop counts upwards, as limits do."""
    if gate.value is None or gate.interval is None or not _finite(gate.interval, gate.value):
        return None
    axis = _around(min(gate.limit, gate.interval.low), max(gate.limit, gate.interval.high))
    return _draw(gate.interval, gate.value, axis, limit=gate.limit, above=LIMITS.load(gate.bound).above)


def axes(rows: list[Comparison]) -> dict[str, Axis]:
    """The axis of each row of one table, symmetric around 0: one for all rates, so that they can be compared, and one
    for each other metric, whose unit is another."""
    reach = {
        row.metric: max(abs(row.difference_interval.low), abs(row.difference_interval.high))
        for row in rows
        if row.difference_interval is not None and _finite(row.difference_interval, row.ablated)
    }
    rates = {row.metric for row in rows if row.base is not None and 0 <= row.base <= 1 and 0 <= row.ablated <= 1}
    shared = _symmetric(max((most for metric, most in reach.items() if metric in rates), default=0.0))
    return {metric: shared if metric in rates else _symmetric(most) for metric, most in reach.items()}


def _symmetric(reach: float) -> Axis:
    """Up to a round number on both sides of 0."""
    return _ends(MaxNLocator(2, steps=STEPS, symmetric=True), -max(reach, 0.01), max(reach, 0.01))


def _around(low: float, high: float) -> Axis:
    """A little more than from low to high, in round numbers."""
    margin = 0.15 * (high - low) or 0.01 * max(1.0, abs(high))
    return _ends(MaxNLocator(8, steps=STEPS), low - margin, high + margin)


def _ends(locator: MaxNLocator, low: float, high: float) -> Axis:
    first, *_, last = locator.tick_values(low, high)
    return Axis(float(first), float(last))


def _draw(
    interval: Interval,
    value: float,
    axis: Axis,
    neutral: float | None = None,
    limit: float | None = None,
    above: bool = False,
) -> Drawing:
    """An interval on its axis; a gate allows what is above its limit, or what is below."""
    allowed = None
    if limit is not None:
        first, last = (axis.place(limit), 100.0) if above else (0.0, axis.place(limit))
        allowed = first, round(last - first, 2)
    return Drawing(
        axis=axis,
        low=axis.place(interval.low),
        high=axis.place(interval.high),
        point=axis.place(value),
        neutral=None if neutral is None else axis.place(neutral),
        limit=axis.place(limit) if limit is not None and axis.first <= limit <= axis.last else None,
        allowed=allowed,
    )


def _finite(interval: Interval, value: float) -> bool:
    return all(math.isfinite(number) for number in (interval.low, interval.high, value))
