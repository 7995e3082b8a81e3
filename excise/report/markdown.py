"""`report.md`, from templates. No model wrote any of it, so that it can be shown to anybody."""

import re

from excise.plumbing.templates import code
from excise.report.conclusions import DRIFT, PARTS, REMOVED, Conclusion, Part, Tone, conclude
from excise.report.findings import Report, findings
from excise.report.words import TEMPLATES, headline, measured, number, signed
from schemas.basis.text import ranges
from schemas.evidence import UNJUDGED, GateVerdicts

MOST_WORDS = 8
"""First words of refusals, and named experts, that are listed."""

WORDS = {
    **{function.__name__: function for function in (code, headline, measured, number, ranges)},
    "drift_limits": DRIFT,
    "removed": REMOVED,
    "signed": signed,
    "unjudged": UNJUDGED,
}
"""Available to every template."""


def render_report(report: Report) -> str:
    return render_part("report", report, folds=True)


def statements(report: Report) -> dict[Part, list[tuple[Tone, str]]]:
    """The conclusions of each part of the report, as Markdown on one line, and their tone."""
    conclusions = conclude(report.rows, report.gates)
    parts = {part: [(each.tone, say(each)) for each in conclusions if each.part == part] for part in PARTS}
    judged = any(row.metric.endswith(".refusal_rate") for row in report.rows)
    return {part: lines or [("plain", sentence("nothing", part, judged))] for part, lines in parts.items()}


def render_part(name: str, report: Report, folds: bool = False) -> str:
    """One template of the report. Only folds are HTML."""
    facts = {"statements": statements(report), "found": findings(report), "most_words": MOST_WORDS}
    text = TEMPLATES.get_template(f"{name}.md.j2").render(**WORDS, **vars(report), **facts, folds=folds)
    # A part that is left out leaves blank lines around it.
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def say(conclusion: Conclusion) -> str:
    """A conclusion in words, as Markdown on one line."""
    return sentence("say", conclusion)


def why(gates: GateVerdicts) -> str:
    return sentence("why", gates)


def sentence(macro: str, *arguments: object) -> str:
    """A macro of `conclusions.md.j2` as Markdown."""
    module = TEMPLATES.get_template("conclusions.md.j2").make_module(WORDS)
    return str(getattr(module, macro)(*arguments)).strip()
