"""Gates: whether each metric kept its limit, as far as its interval can tell. Imports no torch."""

import math
from collections.abc import Sequence
from functools import partial

from excise.comparison.comparison import Measured
from excise.comparison.intervals import samples_needed
from excise.comparison.limits import Limit
from schemas.evidence import UNJUDGED, GateVerdict, GateVerdicts, Interval, Outcome
from schemas.params.gates import LIMITS, Gate

_BADNESS: tuple[Outcome, ...] = ("pass", "warn", "fail")

ROUNDING = 1e-9
"""A drop from 1 to 0.98 is 0.02 and a little, in binary fractions."""


def judge_gates(gates: Sequence[Gate], measured: Sequence[Measured]) -> GateVerdicts:
    """One verdict a gate; the worst of them is that on all. A gate passes where the whole interval keeps its limit,
    fails where the whole interval breaks it, and is inconclusive in between. One whose metric was not measured or is no
    number fails, and so does one on a rate of verdicts where hardly an answer could be judged."""
    by_name = {one.name: one for one in measured}
    verdicts = [_judge(gate, by_name) for gate in gates]
    worst: Outcome = max((verdict.verdict for verdict in verdicts), key=_BADNESS.index, default="pass")
    return GateVerdicts(verdict=worst, gates=verdicts)


def _judge(gate: Gate, measured: dict[str, Measured]) -> GateVerdict:
    limit: Limit = gate.limit
    told = partial(
        GateVerdict,
        metric=gate.metric,
        bound=LIMITS.name_of(limit),
        limit=limit.limit,
        confidence=gate.confidence,
        words=f"{limit.words} {limit.limit:g}",
        value=None,
        interval=None,
        samples_needed=None,
    )
    one = measured.get(gate.metric)
    if one is None:
        task = gate.metric.rpartition(".")[0]
        there = ", ".join(sorted(name for name in measured if name.startswith(task + "."))) or "none"
        return told(verdict="fail", reason=f"there is no such metric; of {task} there is {there}")
    if limit.of_both and one.difference is None:
        reason = "it is measured against the base, so it cannot drop or rise; use at_most"
        return told(verdict="fail", reason=reason)
    value, growing = limit.look_at(one, gate.confidence)
    if unjudged := _unjudged(gate.metric, limit, measured):
        return told(verdict="fail", reason=unjudged, value=value)
    if not math.isfinite(value):
        return told(verdict="fail", reason="it is no number", value=value)
    moved = f"it went from {one.base:.4g} to {one.ablated:.4g}" if limit.of_both else f"it is {one.ablated:.4g}"
    if growing is None:
        kept = _keeps(limit, Interval(low=value, high=value))
        reason = f"{moved}, and how sure that is cannot be said: {one.reason}"
        return told(verdict=gate.inconclusive if kept else "fail", reason=reason, value=value)
    told = partial(told, reason=moved, value=value, interval=growing(1.0))
    decided = _keeps(limit, growing(1.0))
    if decided is not None:
        return told(verdict="pass" if decided else "fail")
    needed = samples_needed(lambda times: _keeps(limit, growing(times)) is not None, one.samples)
    return told(verdict=gate.inconclusive, samples_needed=needed)


def _unjudged(metric: str, limit: Limit, measured: dict[str, Measured]) -> str | None:
    """Why a rate of verdicts says nothing: hardly an answer of a side that the gate looks at could be judged."""
    task, _, name = metric.rpartition(".")
    degenerate = measured.get(f"{task}.degenerate_rate")
    if degenerate is None or not name.startswith(("refusal_rate", "compliance_rate")):
        return None
    sides = {"edited model": degenerate.ablated, "base": degenerate.base if limit.of_both else None}
    counts = [
        f"{rate * degenerate.samples:.0f} of {degenerate.samples} answers of the {side}"
        for side, rate in sides.items()
        if rate is not None and rate >= UNJUDGED
    ]
    if not counts:
        return None
    return f"nothing was judged: {' and '.join(counts)} are degenerate (empty, loops, or reasoning without an end)"


def _keeps(limit: Limit, interval: Interval) -> bool | None:
    """Whether all of an interval keeps the limit (True) or breaks it (False); None where it does neither."""
    if limit.above:
        return (
            True
            if interval.low >= limit.limit - ROUNDING
            else False
            if interval.high < limit.limit - ROUNDING
            else None
        )
    return True if interval.high <= limit.limit + ROUNDING else False if interval.low > limit.limit + ROUNDING else None
