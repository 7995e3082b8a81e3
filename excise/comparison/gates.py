"""Gates: whether each metric kept its limit, by its interval. Imports no torch."""

import math
from collections.abc import Sequence
from functools import partial

from excise.comparison.comparison import PairedMetric
from excise.comparison.intervals import samples_needed
from excise.comparison.limits import Limit
from schemas.evidence import MOSTLY_UNJUDGED, UNJUDGED, GateVerdict, GateVerdicts, Interval, Outcome, worst
from schemas.params.gates import LIMITS, Gate
from schemas.results import RATES

ROUNDING = 1e-9
"""Tolerance, because a drop from 1 to 0.98 is slightly more than 0.02 in binary."""

REFUSALS = tuple(name for name, counted in RATES.items() if "refusal" in counted)
"""Metrics of refusals, or the beginning of their names, as of `refusal_rate_first_30`."""
RATES_OF_JUDGED = tuple(name for name, counted in RATES.items() if "degenerate" not in counted)
"""Metrics that mean nothing if the answers cannot be judged, or the beginning of their names."""


def judge_gates(gates: Sequence[Gate], metrics: Sequence[PairedMetric]) -> GateVerdicts:
    """The verdict of each gate, and the worst of them. A gate passes if its whole interval keeps the limit, fails if
    all of it breaks it, and is inconclusive otherwise. It is void, whatever its interval, if most answers of its task
    could be judged in neither model (`_unjudged`), or if it would pass without any edit (`_base_keeps`)."""
    by_name = {metric.name: metric for metric in metrics}
    verdicts = [_judge(gate, by_name) for gate in gates]
    return GateVerdicts(verdict=worst(verdict.verdict for verdict in verdicts), gates=verdicts)


def _judge(gate: Gate, metrics: dict[str, PairedMetric]) -> GateVerdict:
    limit: Limit = gate.limit
    decide = partial(
        GateVerdict,
        metric=gate.metric,
        bound=LIMITS.name_of(limit),
        limit=limit.limit,
        confidence=gate.confidence,
        words=f"{limit.words} {limit.limit:g}",
        inconclusive=gate.inconclusive,
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
    if unjudged := _unjudged(gate, metrics):
        verdict, reason = unjudged
        return decide(verdict=verdict, reason=reason, value=value)
    if not math.isfinite(value):
        return decide(verdict="fail", reason="it is not a finite number", value=value)
    reason = f"it went from {metric.base:.4g} to " if limit.compares else "it is "
    reason += f"{metric.ablated:.4g}"
    if interval is None:
        kept = _keeps(limit, Interval(low=value, high=value))
        reason = f"{reason}, but its uncertainty is unknown: {metric.reason}"
        return decide(verdict="inconclusive" if kept else "fail", reason=reason, value=value)
    decide = partial(decide, value=value, interval=(ends := interval(1.0)))
    kept = _keeps(limit, ends)
    if kept is not False and (already := _base_keeps(gate, metric)):
        return decide(verdict="void", reason=f"{reason}, but {already}")
    decide = partial(decide, reason=reason)
    if kept is not None:
        return decide(verdict="pass" if kept else "fail")
    needed = samples_needed(lambda times: _keeps(limit, interval(times)) is not None, metric.samples)
    return decide(verdict="inconclusive", samples_needed=needed)


def _unjudged(gate: Gate, metrics: dict[str, PairedMetric]) -> tuple[Outcome, str] | None:
    """What a gate on a rate of verdicts is, and why, if the answers that it counts could not be judged. It is void if
    that is so of both models, because then it is not the edit's doing; otherwise it fails."""
    task, _, name = gate.metric.rpartition(".")
    degenerate = metrics.get(f"{task}.degenerate_rate")
    if degenerate is None or not name.startswith(RATES_OF_JUDGED):
        return None
    rates = {"edited model": degenerate.ablated, "base": degenerate.base}
    counts = {
        model: f"{rate * degenerate.samples:.0f} of {degenerate.samples} answers of the {model}"
        for model, rate in rates.items()
        if rate is not None
    }
    hardly = [model for model, rate in rates.items() if rate is not None and rate >= UNJUDGED]
    what = "degenerate (empty, loops, or reasoning without an end)"
    if len(hardly) == len(rates) or _mostly_unjudged(degenerate, gate.confidence):
        return "void", f"most answers of both models cannot be judged: {' and '.join(counts.values())} are {what}"
    if read := [counts[model] for model in hardly if model == "edited model" or gate.limit.compares]:
        return "fail", f"nothing was judged: {' and '.join(read)} are {what}"
    return None


def _mostly_unjudged(degenerate: PairedMetric, confidence: float) -> bool:
    """Whether more than half of the answers are degenerate in both models, by both intervals."""
    return all(
        (interval := degenerate.value_interval(values, confidence)) is not None and interval(1.0).low > MOSTLY_UNJUDGED
        for values in (degenerate.base_values, degenerate.ablated_values)
    )


def _base_keeps(gate: Gate, metric: PairedMetric) -> str | None:
    """Why a limit on refusals that an edit should remove shows nothing, if the base's whole interval keeps it."""
    group, name = gate.metric.partition(".")[0], gate.metric.rpartition(".")[2]
    if group != "refusal" or not name.startswith(REFUSALS) or LIMITS.name_of(gate.limit) != "at_most":
        return None
    interval = metric.value_interval(metric.base_values, gate.confidence)
    if interval is None or not _keeps(gate.limit, interval(1.0)):
        return None
    return (
        f"the base keeps this limit already: its rate is {metric.base:.4g}, by its interval at most "
        f"{interval(1.0).high:.4g}, so this gate shows nothing about the edit"
    )


def _keeps(limit: Limit, interval: Interval) -> bool | None:
    """Whether the whole interval keeps the limit (True) or breaks it (False); None if it does neither."""
    if limit.above:
        kept, broken = interval.low >= limit.limit - ROUNDING, interval.high < limit.limit - ROUNDING
    else:
        kept, broken = interval.high <= limit.limit + ROUNDING, interval.low > limit.limit + ROUNDING
    return True if kept else False if broken else None
