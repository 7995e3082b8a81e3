"""Gates: whether each metric kept its limit, by its interval. Imports no torch."""

import math
from collections.abc import Sequence
from functools import partial
from typing import get_args

from excise.comparison.comparison import PairedMetric
from excise.comparison.intervals import samples_needed
from excise.comparison.limits import Limit
from schemas.evidence import UNJUDGED, GateVerdict, GateVerdicts, Interval, Outcome
from schemas.params.gates import LIMITS, Gate

ROUNDING = 1e-9
"""Tolerance, because a drop from 1 to 0.98 is slightly more than 0.02 in binary."""


def judge_gates(gates: Sequence[Gate], metrics: Sequence[PairedMetric]) -> GateVerdicts:
    """The verdict of each gate, and the worst of them. A gate passes if its whole interval keeps the limit, fails if
    all of it breaks it or the number means nothing (`_judge`, `_unjudged`), and is inconclusive otherwise."""
    by_name = {metric.name: metric for metric in metrics}
    verdicts = [_judge(gate, by_name) for gate in gates]
    worst: Outcome = max((verdict.verdict for verdict in verdicts), key=get_args(Outcome).index, default="pass")
    return GateVerdicts(verdict=worst, gates=verdicts)


def _judge(gate: Gate, metrics: dict[str, PairedMetric]) -> GateVerdict:
    limit: Limit = gate.limit
    decide = partial(
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
    metric = metrics.get(gate.metric)
    if metric is None:
        task = gate.metric.rpartition(".")[0]
        others = ", ".join(sorted(name for name in metrics if name.startswith(task + "."))) or "none"
        return decide(verdict="fail", reason=f"this metric does not exist; metrics of {task}: {others}")
    if limit.compares and metric.difference is None:
        reason = "it is measured against the base, so it cannot drop or rise; use at_most"
        return decide(verdict="fail", reason=reason)
    value, interval = limit.read(metric, gate.confidence)
    if unjudged := _unjudged(gate.metric, limit, metrics):
        return decide(verdict="fail", reason=unjudged, value=value)
    if not math.isfinite(value):
        return decide(verdict="fail", reason="it is not a finite number", value=value)
    reason = f"it went from {metric.base:.4g} to " if limit.compares else "it is "
    reason += f"{metric.ablated:.4g}"
    if interval is None:
        kept = _keeps(limit, Interval(low=value, high=value))
        reason = f"{reason}, but its uncertainty is unknown: {metric.reason}"
        return decide(verdict=gate.inconclusive if kept else "fail", reason=reason, value=value)
    decide = partial(decide, reason=reason, value=value, interval=interval(1.0))
    kept = _keeps(limit, interval(1.0))
    if kept is not None:
        return decide(verdict="pass" if kept else "fail")
    needed = samples_needed(lambda times: _keeps(limit, interval(times)) is not None, metric.samples)
    return decide(verdict=gate.inconclusive, samples_needed=needed)


def _unjudged(metric: str, limit: Limit, metrics: dict[str, PairedMetric]) -> str | None:
    """Why a rate of verdicts means nothing: hardly any answer of a model that the gate reads could be judged."""
    task, _, name = metric.rpartition(".")
    degenerate = metrics.get(f"{task}.degenerate_rate")
    if degenerate is None or not name.startswith(("refusal_rate", "compliance_rate")):
        return None
    rates = {"edited model": degenerate.ablated, "base": degenerate.base if limit.compares else None}
    counts = [
        f"{rate * degenerate.samples:.0f} of {degenerate.samples} answers of the {model}"
        for model, rate in rates.items()
        if rate is not None and rate >= UNJUDGED
    ]
    if not counts:
        return None
    return f"nothing was judged: {' and '.join(counts)} are degenerate (empty, loops, or reasoning without an end)"


def _keeps(limit: Limit, interval: Interval) -> bool | None:
    """Whether the whole interval keeps the limit (True) or breaks it (False); None if it does neither."""
    if limit.above:
        kept, broken = interval.low >= limit.limit - ROUNDING, interval.high < limit.limit - ROUNDING
    else:
        kept, broken = interval.high <= limit.limit + ROUNDING, interval.low > limit.limit + ROUNDING
    return True if kept else False if broken else None
