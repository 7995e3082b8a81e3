"""`report.md`, from a template: what a pull request's comment shows. Nothing in it was written by a model."""

import re

from excise.report.conclusions import DRIFT, REMOVED, Conclusion, conclude
from excise.report.findings import Report, findings
from excise.report.words import TEMPLATES, VERDICTS, code, headline, measured, number, signed
from schemas.basis.text import ranges
from schemas.evidence import GateVerdicts

MOST_WORDS = 8
"""So many words with which refusals begin, and so many named experts, are written out."""

WORDS = {
    **{called.__name__: called for called in (code, headline, measured, number, ranges)},
    "drift_limits": DRIFT,
    "removed": REMOVED,
    "signed": signed,
    "verdicts": VERDICTS,
}
"""What every template may call."""


def render_report(report: Report) -> str:
    """The report in Markdown: verdict, gates, what happened, every metric of both models, and what explains them."""
    return _render("report.md.j2", report, folds=True)


def render_explanation(report: Report) -> str:
    """The part on the diagnosis and the simulated rules, with no HTML in it: the folds are left out."""
    return _render("diagnosis.md.j2", report, folds=False)


def say(conclusion: Conclusion) -> str:
    """A conclusion in words, as Markdown on one line."""
    return told("say", conclusion)


def why(gates: GateVerdicts) -> str:
    """One sentence on why the verdict is what it is, as Markdown on one line."""
    return told("why", gates)


def told(macro: str, *arguments: object) -> str:
    """What a macro of `conclusions.md.j2` says, as Markdown."""
    module = TEMPLATES.get_template("conclusions.md.j2").make_module(WORDS)
    return str(getattr(module, macro)(*arguments)).strip()


def _render(template: str, report: Report, folds: bool) -> str:
    shown = {"conclusions": conclude(report.rows, report.gates), "found": findings(report), "most_words": MOST_WORDS}
    text = TEMPLATES.get_template(template).render(**WORDS, **vars(report), **shown, folds=folds)
    # A part that is left out leaves the blank lines around it.
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"
