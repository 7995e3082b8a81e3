"""Gates: whether each metric kept its limit. Imports no torch."""

from schemas.artifacts import Comparison, GateVerdict, GateVerdicts
from schemas.params import Bound, Gate

_WORDS: dict[Bound, str] = {
    "at_most": "at most",
    "at_least": "at least",
    "max_drop": "drop of at most",
    "max_rise": "rise of at most",
}


def judge_gates(gates: tuple[Gate, ...], rows: list[Comparison]) -> GateVerdicts:
    """One verdict a gate; all pass when each does. A gate whose metric was not measured fails."""
    by_metric = {row.metric: row for row in rows}
    verdicts = [_judge(gate, by_metric) for gate in gates]
    failed = any(verdict.verdict == "fail" for verdict in verdicts)
    return GateVerdicts(verdict="fail" if failed else "pass", gates=verdicts)


def _judge(gate: Gate, rows: dict[str, Comparison]) -> GateVerdict:
    bound, limit = gate.limit()
    words = f"{_WORDS[bound]} {limit:g}"

    def verdict(passed: bool, value: float | None, reason: str) -> GateVerdict:
        return GateVerdict(
            metric=gate.metric, limit=words, value=value, verdict="pass" if passed else "fail", reason=reason
        )

    row = rows.get(gate.metric)
    if row is None:
        task = gate.metric.rpartition(".")[0]
        there = ", ".join(sorted(name for name in rows if name.startswith(task + "."))) or "none"
        return verdict(False, None, f"there is no such metric; of {task} there is {there}")
    if bound == "at_most":
        return verdict(row.ablated <= limit, row.ablated, f"it is {row.ablated:.4g}")
    if bound == "at_least":
        return verdict(row.ablated >= limit, row.ablated, f"it is {row.ablated:.4g}")
    if row.difference is None:
        return verdict(False, None, "it is measured against the base, so it cannot drop or rise; use at_most")
    moved = -row.difference if bound == "max_drop" else row.difference
    # A drop from 1 to 0.98 is 0.02 and a little, in binary fractions.
    return verdict(moved <= limit + 1e-9, moved, f"it went from {row.base:.4g} to {row.ablated:.4g}")
