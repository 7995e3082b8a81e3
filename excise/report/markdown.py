"""`report.md`, from a template: what a pull request's comment shows. Nothing in it was written by a model."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from excise.report.conclusions import DRIFT, REMOVED, Conclusion, conclude
from excise.report.findings import MOST_WORDS, findings
from excise.report.words import TEMPLATES, VERDICTS, code, headline, measured, number, signed
from schemas.basis.text import ranges
from schemas.diagnosis import Diagnosis
from schemas.evidence import Comparison, GateVerdicts
from schemas.params.ablate import Ablate
from schemas.simulation import Simulation


def render_report(
    rows: list[Comparison],
    gates: GateVerdicts,
    left_out: Mapping[str, int],
    diagnosis: Diagnosis,
    simulation: Simulation,
    ablate: Ablate,
    pictures: Collection[str],
) -> str:
    """The report in Markdown: verdict, gates, what happened, every metric of both models, and what explains them.

    Args:
        left_out: judged task → samples that were not asked, as their prompts were measured.
        ablate: the section of params.yaml whose rules were simulated.
        pictures: the names of those that lie in `pictures/`, without their ending.
    """
    return _render(
        "report.md.j2",
        rows=rows,
        gates=gates,
        left_out=left_out,
        conclusions=conclude(rows, gates),
        **_explained(diagnosis, simulation, ablate, pictures),
        folds=True,
    )


def render_explanation(diagnosis: Diagnosis, simulation: Simulation, ablate: Ablate, pictures: Collection[str]) -> str:
    """The part on the diagnosis and the simulated rules, with no HTML in it: the folds are left out."""
    return _render("diagnosis.md.j2", **_explained(diagnosis, simulation, ablate, pictures), folds=False)


def say(conclusion: Conclusion) -> str:
    """A conclusion in words, as Markdown on one line."""
    return _macro("say", conclusion)


def why(gates: GateVerdicts) -> str:
    """One sentence on why the verdict is what it is, as Markdown on one line."""
    return _macro("why", gates)


def left_out_note(left_out: Mapping[str, int]) -> str:
    """How many samples of each judged task were not asked, as their prompts were measured; nothing where none was."""
    return _macro("left_out_note", left_out)


def drift_note() -> str:
    """What drift metrics are, and when drift is called large, as Markdown."""
    return _macro("drift_note")


def _macro(name: str, *arguments: object) -> str:
    module = TEMPLATES.get_template("conclusions.md.j2").make_module(WORDS)
    return str(getattr(module, name)(*arguments)).strip()


def _explained(
    diagnosis: Diagnosis, simulation: Simulation, ablate: Ablate, pictures: Collection[str]
) -> dict[str, Any]:
    return {
        "diagnosis": diagnosis,
        "simulation": simulation,
        "found": findings(diagnosis, simulation, ablate),
        "pictures": pictures,
        "most_words": MOST_WORDS,
    }


def _render(template: str, **given: object) -> str:
    text = TEMPLATES.get_template(template).render(**WORDS, **given)
    # A part that is left out leaves the blank lines around it.
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


WORDS: dict[str, Any] = {
    "code": code,
    "drift_limits": DRIFT,
    "headline": headline,
    "measured": measured,
    "number": number,
    "ranges": ranges,
    "removed": REMOVED,
    "signed": signed,
    "verdicts": VERDICTS,
}
"""What every template may call."""
