"""Numbers and names as people write them, and the templates for them."""

from functools import partial
from pathlib import Path

from excise.plumbing.templates import environment
from schemas.evidence import GateVerdict, GateVerdicts

_FOLDER = Path(__file__).parent / "templates"
TEMPLATES = environment(_FOLDER)
"""Of Markdown."""
PAGES = environment(_FOLDER, autoescape=True)
"""Of HTML: all values are text, except what such a template made."""


def number(value: float, sign: str = "") -> str:
    """Three digits, whatever the size: `0.00123`, `12.3`, `12,345`."""
    return f"{value:{sign},.0f}" if abs(value) >= 999.5 else f"{value:{sign}#.3g}"


signed = partial(number, sign="+")
"""The same with its sign, for differences."""


VERDICTS = {"pass": "pass", "warn": "inconclusive", "fail": "fail"}
"""A gate's verdict in words."""


def headline(gates: GateVerdicts) -> str:
    if not gates.gates:
        return "No gates"
    return {"pass": "All gates pass", "warn": "Inconclusive", "fail": "A gate fails"}[gates.verdict]


def measured(gate: GateVerdict) -> str:
    """The value that a gate judges, with its interval: `0.25 (0.2031 to 0.3021, 95 %)`."""
    if gate.value is None:
        return "-"
    if gate.interval is None:
        return f"{gate.value:.4g} (no interval)"
    return f"{gate.value:.4g} ({gate.interval.low:.4g} to {gate.interval.high:.4g}, {100 * gate.confidence:g} %)"


MOST_CHARACTERS = 4_000
"""Of a text that is shown."""
