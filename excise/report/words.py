"""Numbers and names as people write them, and the templates for them."""

from collections import Counter
from functools import partial
from pathlib import Path

from excise.plumbing.templates import environment
from schemas.evidence import GateVerdict, GateVerdicts, Outcome

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


_VERBS: dict[Outcome, tuple[str, str]] = {
    "fail": ("fails", "fail"),
    "void": ("is void", "are void"),
    "inconclusive": ("is inconclusive", "are inconclusive"),
}
"""Of one gate and of several, worst first."""


def headline(gates: GateVerdicts) -> str:
    """How many gates are in each state but `pass`, worst first: `A gate fails, 2 are inconclusive`."""
    if not gates.gates:
        return "No gates"
    counts = Counter(gate.verdict for gate in gates.gates)
    said = [f"{counts[state]:,} {verbs[counts[state] > 1]}" for state, verbs in _VERBS.items() if counts[state]]
    if not said:
        return "All gates pass"
    number, verb = said[0].split(" ", 1)
    said[0] = f"A gate {verb}" if number == "1" else f"{number} gates {verb}"
    refused = sum(gate.verdict == "inconclusive" and not gate.accepted for gate in gates.gates)
    if refused:
        said.append("and not accepted" if counts["inconclusive"] == 1 else f"{refused} of them not accepted")
    return ", ".join(said)


def measured(gate: GateVerdict) -> str:
    """The value that a gate judges, with its interval: `0.25 (0.2031 to 0.3021, 95 %)`."""
    if gate.value is None:
        return "-"
    if gate.interval is None:
        return f"{gate.value:.4g} (no interval)"
    return f"{gate.value:.4g} ({gate.interval.low:.4g} to {gate.interval.high:.4g}, {100 * gate.confidence:g} %)"


MOST_CHARACTERS = 4_000
"""Of a text that is shown."""
