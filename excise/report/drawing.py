"""Where each part of a drawn interval lies, in hundredths of the width."""

import math
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from excise.report.conclusions import DRIFT
from schemas.evidence import Comparison, GateVerdict, Interval
from schemas.params.gates import LIMITS

ROUND = [1, 2, 5, 10]


@dataclass(frozen=True)
class Axis:
    """The numbers at both ends of a drawing."""

    first: float
    last: float

    def position(self, value: float) -> float:
        """Where a value lies; values beyond an end lie at that end."""
        return round(100 * min(1.0, max(0.0, (value - self.first) / (self.last - self.first))), 2)


@dataclass(frozen=True)
class Drawing:
    axis: Axis
    low: float
    high: float
    point: float
    neutral: float | None
    """Where nothing differs from the base; None for a gate."""
    limit: float | None
    """Of a gate; None if it is not on the axis."""
    allowed: tuple[float, float] | None
    """What the gate allows: its start and width."""


def draw_difference(row: Comparison, gates: list[GateVerdict], axis: Axis | None) -> Drawing | None:
    """A difference beside 0 and beside the gate that limits it; None without an interval."""
    if axis is None or row.difference is None or row.difference_interval is None:
        return None
    limits = {gate.bound: gate.limit for gate in gates if gate.metric == row.metric}
    falls = "max_drop" in limits
    limit = -limits["max_drop"] if falls else limits.get("max_rise")
    return _draw(row.difference_interval, row.difference, axis, 0.0, limit, above=falls)


def draw_drift(row: Comparison) -> Drawing | None:
    """Drift beside that of the base itself, on its own axis; None without an interval."""
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
    """What a gate judges, beside its limit; None without an interval. A drop counts upward, as its limit does."""
    if gate.value is None or gate.interval is None or not _finite(gate.interval, gate.value):
        return None
    axis = _around(min(gate.limit, gate.interval.low), max(gate.limit, gate.interval.high))
    return _draw(gate.interval, gate.value, axis, limit=gate.limit, above=LIMITS.load(gate.bound).above)


def axes(rows: list[Comparison]) -> dict[str, Axis]:
    """The axis of each row of one table, symmetric around 0; rates share one, so that they can be compared."""
    reach = {
        row.metric: max(abs(row.difference_interval.low), abs(row.difference_interval.high))
        for row in rows
        if row.difference_interval is not None and _finite(row.difference_interval, row.ablated)
    }
    rates = {row.metric for row in rows if row.base is not None and 0 <= row.base <= 1 and 0 <= row.ablated <= 1}
    most_of_rates = max((most for metric, most in reach.items() if metric in rates), default=0.0)
    symmetric = MaxNLocator(2, steps=ROUND, symmetric=True)
    ends = {metric: max(most_of_rates if metric in rates else most, 0.01) for metric, most in reach.items()}
    return {metric: _ends(symmetric, -most, most) for metric, most in ends.items()}


def _around(low: float, high: float) -> Axis:
    """A little more than from low to high, in round numbers."""
    margin = 0.15 * (high - low) or 0.01 * max(1.0, abs(high))
    return _ends(MaxNLocator(8, steps=ROUND), low - margin, high + margin)


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
    allowed = None
    if limit is not None:
        border = axis.position(limit)
        allowed = (border, round(100 - border, 2)) if above else (0.0, border)
    return Drawing(
        axis=axis,
        low=axis.position(interval.low),
        high=axis.position(interval.high),
        point=axis.position(value),
        neutral=None if neutral is None else axis.position(neutral),
        limit=axis.position(limit) if limit is not None and axis.first <= limit <= axis.last else None,
        allowed=allowed,
    )


def _finite(interval: Interval, value: float) -> bool:
    return all(math.isfinite(number) for number in (interval.low, interval.high, value))
