"""The model card of an edited model, from a template: a function of what `edit.json` says alone."""

from schemas.artifacts import EditRecord, PlanRow
from stages.rendering.jinja import TEMPLATES
from stages.rendering.words import ranges


def render_card(record: EditRecord, rows: list[PlanRow]) -> str:
    """README.md of the model's folder: what was edited, and what that means for whoever serves it."""
    return TEMPLATES.get_template("card.md.j2").render(record=record, rows=rows, ranges=ranges)
