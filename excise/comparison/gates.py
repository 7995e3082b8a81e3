"""Gates: whether each metric kept its limit, as far as its interval can tell. Imports no torch."""

import math
from collections.abc import Sequence

from excise.comparison.comparison import Growing, Measured, as_interval
from excise.comparison.intervals import Bounds, samples_needed
from schemas.evidence import UNJUDGED, GateVerdict, GateVerdicts, Outcome
from schemas.params.gates import Bound, Gate

_WORDS: dict[Bound, str] = {
    "at_most": "at most",
    "at_least": "at least",
    "max_drop": "drop of at most",
    "max_rise": "rise of at most",
}
_BADNESS: tuple[Outcome, ...] = ("pass", "warn", "fail")

ROUNDING = 1e-9
"""A drop from 1 to 0.98 is 0.02 and a little, in binary fractions."""


def judge_gates(gates: Sequence[Gate], measured: Sequence[Measured]) -> GateVerdicts:
    """One verdict a gate; the worst of them is that on all.

    A gate passes where the whole interval keeps its limit, fails where the whole interval breaks it, and is
    inconclusive in between. One whose metric was not measured or is no number fails, and so does one on a rate of
    verdicts where hardly an answer could be judged.
    """
    by_name = {one.name: one for one in measured}
    verdicts = [_judge(gate, by_name) for gate in gates]
    worst: Outcome = max((verdict.verdict for verdict in verdicts), key=_BADNESS.index, default="pass")
    return GateVerdicts(verdict=worst, gates=verdicts)


def _judge(gate: Gate, measured: dict[str, Measured]) -> GateVerdict:
    bound, limit = gate.limit()
    one = measured.get(gate.metric)
    if one is None:
        task = gate.metric.rpartition(".")[0]
        there = ", ".join(sorted(name for name in measured if name.startswith(task + "."))) or "none"
        return _verdict(gate, "fail", f"there is no such metric; of {task} there is {there}")
    if bound in ("max_drop", "max_rise") and one.difference is None:
        return _verdict(gate, "fail", "it is measured against the base, so it cannot drop or rise; use at_most")
    value, growing = _looked_at(one, bound, gate.confidence)
    if unjudged := _unjudged(gate.metric, bound, measured):
        return _verdict(gate, "fail", unjudged, value)
    if not math.isfinite(value):
        return _verdict(gate, "fail", "it is no number", value)
    if growing is None:
        reason = f"{_moved(one, bound)}, and how sure that is cannot be said: {one.reason}"
        return _verdict(
            gate, gate.inconclusive if _keeps(bound, limit, Bounds(value, value)) else "fail", reason, value
        )
    decided = _keeps(bound, limit, growing(1.0))
    if decided is not None:
        return _verdict(gate, "pass" if decided else "fail", _moved(one, bound), value, growing)
    needed = samples_needed(lambda times: _keeps(bound, limit, growing(times)) is not None, one.samples)
    return _verdict(gate, gate.inconclusive, _moved(one, bound), value, growing, needed)


def _unjudged(metric: str, bound: Bound, measured: dict[str, Measured]) -> str | None:
    """Why a rate of verdicts says nothing: hardly an answer of a side that the gate looks at could be judged."""
    task, _, name = metric.rpartition(".")
    degenerate = measured.get(f"{task}.degenerate_rate")
    if degenerate is None or not name.startswith(("refusal_rate", "compliance_rate")):
        return None
    sides = {"edited model": degenerate.ablated, "base": degenerate.base if bound in ("max_drop", "max_rise") else None}
    counts = [
        f"{rate * degenerate.samples:.0f} of {degenerate.samples} answers of the {side}"
        for side, rate in sides.items()
        if rate is not None and rate >= UNJUDGED
    ]
    if not counts:
        return None
    return f"nothing was judged: {' and '.join(counts)} are degenerate (empty, loops, or reasoning without an end)"


def _verdict(
    gate: Gate,
    verdict: Outcome,
    reason: str,
    value: float | None = None,
    growing: Growing | None = None,
    needed: int | None = None,
) -> GateVerdict:
    bound, limit = gate.limit()
    return GateVerdict(
        metric=gate.metric,
        bound=bound,
        limit=limit,
        confidence=gate.confidence,
        words=f"{_WORDS[bound]} {limit:g}",
        value=value,
        interval=as_interval(growing),
        verdict=verdict,
        reason=reason,
        samples_needed=needed,
    )


def _looked_at(one: Measured, bound: Bound, confidence: float) -> tuple[float, Growing | None]:
    """What a bound is about: the edited model's value, its drop or its rise; and the interval of that."""
    if bound in ("at_most", "at_least"):
        return one.ablated, one.value_interval(confidence)
    assert one.difference is not None
    rise = one.difference_interval(confidence)
    if bound == "max_rise":
        return one.difference, rise
    return 0.0 - one.difference, None if rise is None else lambda times: _turned(rise(times))


def _turned(bounds: Bounds) -> Bounds:
    return Bounds(0.0 - bounds.high, 0.0 - bounds.low)


def _keeps(bound: Bound, limit: float, interval: Bounds) -> bool | None:
    """Whether all of an interval keeps the limit (True) or breaks it (False); None where it does neither."""
    if bound == "at_least":
        return True if interval.low >= limit - ROUNDING else False if interval.high < limit - ROUNDING else None
    return True if interval.high <= limit + ROUNDING else False if interval.low > limit + ROUNDING else None


def _moved(one: Measured, bound: Bound) -> str:
    if bound in ("at_most", "at_least"):
        return f"it is {one.ablated:.4g}"
    return f"it went from {one.base:.4g} to {one.ablated:.4g}"
