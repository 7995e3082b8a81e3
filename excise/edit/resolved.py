"""The edit that the rules describe, resolved against the base and what was measured of it; nothing is written yet."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from excise.checkpoint.manifest import base_checkpoint, base_folder, read_layout, read_manifest, verify
from excise.checkpoint.weights import Checkpoint
from excise.edit.checkpoint import read_vector
from excise.edit.layout import spare_layers
from excise.edit.measured import read_directions, read_use
from excise.edit.odds import odds_by_layer
from excise.edit.pairing import make_pairs
from excise.edit.plan import Edit, make_plan, summary
from excise.edit.projection import Pair
from excise.edit.shifts import Shift, make_shifts, summary_of_shifts
from excise.plumbing.device import chosen_device
from schemas.edit import PlanRow
from schemas.model import ModelManifest
from schemas.params.ablate import Ablate
from schemas.params.section import read_settings

ARTIFACTS = Path("artifacts")


@dataclass(frozen=True)
class ResolvedEdit:
    """What is edited, and how."""

    params: Ablate
    manifest: ModelManifest
    folder: Path
    """Of the base model."""
    base: Checkpoint
    plan: Sequence[Edit]
    pairs: Sequence[Pair]
    """One an edit of the plan."""
    shifts: Sequence[Shift]
    spare_layers: list[str]
    device: torch.device

    @property
    def rows(self) -> list[PlanRow]:
        """The plan by role."""
        return [*summary(self.plan, self.base.tensors), *summary_of_shifts(self.shifts, self.base.tensors)]


def resolve_edit() -> ResolvedEdit:
    """Resolve the rules of artifacts/params against what the stages before `ablate` left.

    Raises:
        StageError: something of that is missing or not whole, the base is not what was pinned, or the model does not
            take this edit.
    """
    params = read_settings(Ablate, ARTIFACTS / "params/ablate.json")
    manifest, folder = read_manifest(), base_folder()
    base = base_checkpoint(folder, manifest)
    layout = read_layout()
    statistics, measured = read_directions(ARTIFACTS, layout)
    plan = make_plan(params, layout, base.tensors, [row.reason for row in statistics])
    shifts = make_shifts(params, layout, base.tensors, odds_by_layer(read_use(ARTIFACTS, layout)))
    spare, device = spare_layers(layout, base.tensors), chosen_device()
    verify(folder, manifest)
    pairs = make_pairs(plan, params, measured, lambda name: read_vector(base, name))
    return ResolvedEdit(params, manifest, folder, base, plan, pairs, shifts, spare, device)
