"""Numbers and names as people write them, and the templates for them."""

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
"""Of HTML: all values are text, except what such a template made."""


def number(value: float, sign: str = "") -> str:
    """Three digits, whatever the size: `0.00123`, `12.3`, `12,345`."""
    return f"{value:{sign},.0f}" if abs(value) >= 999.5 else f"{value:{sign}#.3g}"


signed = partial(number, sign="+")
"""The same with its sign, for differences."""


def code(text: str) -> str:
    """Any text, such as a token, as a Markdown code span on one line that nothing in it can end."""
    return f"`{show(text).replace('`', chr(92) + 'x60')}`"


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


def inert(text: str) -> str:
    """The text with invisible characters (controls, direction marks, lone surrogates) replaced by their codes."""
    return "".join(c if _is_visible(c) else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _is_visible(character: str) -> bool:
    category = unicodedata.category(character)
    return character in "\n\t" or not (category[0] == "C" or category in ("Zl", "Zp"))
