"""Gates in words."""

from schemas.evidence import GateVerdict, GateVerdicts

VERDICTS = {"pass": "pass", "warn": "inconclusive", "fail": "fail"}
"""What a reader is told of a gate."""


def headline(gates: GateVerdicts) -> str:
    """The verdict on all gates. Where there are none, nothing passed."""
    if not gates.gates:
        return "No gates"
    return {"pass": "All gates pass", "warn": "Inconclusive", "fail": "A gate fails"}[gates.verdict]


def measured(gate: GateVerdict) -> str:
    """What a gate judges, with its interval: `0.25 (0.2031 to 0.3021, 95 %)`."""
    if gate.value is None:
        return "-"
    if gate.interval is None:
        return f"{gate.value:.4g} (no interval)"
    return f"{gate.value:.4g} ({gate.interval.low:.4g} to {gate.interval.high:.4g}, {100 * gate.confidence:g} %)"
