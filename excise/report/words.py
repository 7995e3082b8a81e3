"""Numbers and names as people write them, and the templates that they are put into."""

import unicodedata
from functools import partial
from pathlib import Path

from excise.plumbing.templates import environment
from schemas.basis.text import show
from schemas.evidence import GateVerdict, GateVerdicts

_FOLDER = Path(__file__).parent / "templates"
TEMPLATES = environment(_FOLDER)
"""Of Markdown."""
PAGES = environment(_FOLDER, autoescape=True)
"""Of HTML: whatever goes in is text, unless it was made by such a template itself."""


def number(value: float, sign: str = "") -> str:
    """Three digits, whatever the size: `0.00123`, `12.3`, `12,345`."""
    return f"{value:{sign},.0f}" if abs(value) >= 999.5 else f"{value:{sign}#.3g}"


signed = partial(number, sign="+")
"""The same with its sign, as a difference has one."""


def code(text: str) -> str:
    """Any text as a Markdown code span on one line that nothing in it can end: it may come from a tokenizer."""
    return f"`{show(text).replace('`', chr(92) + 'x60')}`"


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


MOST_CHARACTERS = 4_000
"""So much of a text is shown."""


def inert(text: str) -> str:
    """The text with every character written out as its code that is no sign: controls, marks of direction, invisible
    ones, lone surrogates, unassigned ones. Line ends and tabs stay."""
    return "".join(one if _is_sign(one) else one.encode("unicode_escape", "surrogatepass").decode() for one in text)


def _is_sign(character: str) -> bool:
    kind = unicodedata.category(character)
    return character in "\n\t" or not (kind[0] == "C" or kind in ("Zl", "Zp"))
