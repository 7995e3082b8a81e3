"""The edit that the rules describe, resolved against the base and its directions; nothing is written yet."""

from dataclasses import dataclass
from pathlib import Path

from excise.checkpoint.base_model import BaseModel
from excise.edit.layout import spare_layers
from excise.edit.measured import read_directions, read_use
from excise.edit.plan import Edit, make_plan, summary
from excise.edit.shifts import Shift, make_shifts, odds_by_layer, summary_of_shifts
from schemas.edit import PlanRow
from schemas.params.ablate import Ablate
from schemas.params.section import read_settings

ARTIFACTS = Path("artifacts")


@dataclass(frozen=True)
class ResolvedEdit:
    """What is edited, and how."""

    settings: Ablate
    base: BaseModel
    edits: list[Edit]
    shifts: list[Shift]

    @property
    def rows(self) -> list[PlanRow]:
        """The plan by role."""
        return [*summary(self.edits, self.base.tensors), *summary_of_shifts(self.shifts, self.base.tensors)]

    @property
    def spare_layers(self) -> list[str]:
        """Prefixes of layers that the file holds and the model does not use."""
        return spare_layers(self.base.layout, self.base.tensors)


def resolve_edit() -> ResolvedEdit:
    """Resolve the rules of artifacts/params against what the stages before `ablate` left.

    Raises:
        StageError: something of that is missing or not whole, the base is not what was pinned, or the model does not
            take this edit.
    """
    settings = read_settings(Ablate, ARTIFACTS / "params/ablate.json")
    base = BaseModel.open()
    _, directions = read_directions(ARTIFACTS, base.layout)
    edits = make_plan(settings, base, directions)
    return ResolvedEdit(
        settings, base, edits, make_shifts(settings, base, odds_by_layer(read_use(ARTIFACTS, base.layout)))
    )
