"""`report.md`, from a template."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from schemas.artifacts import Comparison, GateVerdicts

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # Markdown; what goes in are our own names and numbers
)


def render_report(rows: list[Comparison], gates: GateVerdicts) -> str:
    """The report in Markdown: verdict, gates, and every metric of the base and of the edited model."""
    return _TEMPLATES.get_template("report.md.j2").render(rows=rows, gates=gates)
