"""`report.md`, from a template."""

from schemas.artifacts import Comparison, GateVerdicts
from stages.rendering.jinja import TEMPLATES


def render_report(rows: list[Comparison], gates: GateVerdicts) -> str:
    """The report in Markdown: verdict, gates, and every metric of the base and of the edited model."""
    return TEMPLATES.get_template("report.md.j2").render(rows=rows, gates=gates)
