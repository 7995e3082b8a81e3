"""`report.md`, from a template."""

import re
from collections.abc import Collection

from schemas.artifacts import Comparison, GateVerdicts
from schemas.diagnosis import Diagnosis
from schemas.params import Ablate
from stages.rendering.findings import MOST_WORDS, findings
from stages.rendering.jinja import TEMPLATES
from stages.rendering.words import code, number, ranges, signed


def render_report(
    rows: list[Comparison], gates: GateVerdicts, diagnosis: Diagnosis, ablate: Ablate, pictures: Collection[str]
) -> str:
    """The report in Markdown: verdict, gates, every metric of the base and of the edited model, and what explains them.

    Args:
        ablate: the section of params.yaml that the diagnosis was made with.
        pictures: the names of those that lie in `pictures/`, without their ending.
    """
    text = TEMPLATES.get_template("report.md.j2").render(
        rows=rows,
        gates=gates,
        diagnosis=diagnosis,
        found=findings(diagnosis, ablate),
        pictures=pictures,
        most_words=MOST_WORDS,
        code=code,
        number=number,
        ranges=ranges,
        signed=signed,
    )
    # A part that is left out leaves the blank lines around it.
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"
