"""The model card of an edited model, from a template: a function of nothing but what its `edit.json` says."""

from collections.abc import Sequence
from pathlib import Path

from excise.plumbing.templates import environment
from schemas.edit import PlanRow
from schemas.model import ModelManifest
from schemas.params.ablate import Ablate
from schemas.text import ranges

TEMPLATES = Path(__file__).parent / "templates"


def render_card(
    base: ModelManifest, ablate: Ablate, rows: list[PlanRow], spare_layers: list[str], left_out: Sequence[str]
) -> str:
    """README.md of the model's folder: what was edited, and what that means for whoever serves it."""
    return (
        environment(TEMPLATES)
        .get_template("card.md.j2")
        .render(base=base, ablate=ablate, rows=rows, spare_layers=spare_layers, left_out=left_out, ranges=ranges)
    )
