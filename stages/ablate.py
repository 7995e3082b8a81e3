"""Stage ablate: base model, directions and rules → plan → the edited model, streamed tensor by tensor."""

import hashlib
from pathlib import Path

from safetensors.torch import load_file

from schemas.artifacts import DirectionStatistics, EditRecord
from schemas.params import Ablate, read_section
from stages.base.files import whole_folder, write_json
from stages.base.manifest import base_folder, digests, read_config, read_manifest, verify
from stages.base.progress import progress
from stages.base.stage import run_stage
from stages.base.weights import EDIT_RECORD, read_checkpoint
from stages.edit.checkpoint import write_edited
from stages.edit.plan import make_plan
from stages.edit.projection import unit_vector

ARTIFACTS = Path("artifacts")
OUTPUT = Path("models/ablated")


def main() -> None:
    """Resolve the rules, then write the whole model beside its place and move it there."""
    params = read_section(Ablate, ARTIFACTS / "params/ablate.json")
    manifest, folder = read_manifest(), base_folder()
    verify(folder, manifest)
    base = read_checkpoint(folder)
    statistics = DirectionStatistics.model_validate_json((ARTIFACTS / "directions.json").read_text())
    reasons = [row.reason for row in statistics.measurements]
    plan = make_plan(params, manifest, read_config(folder), base.tensors, reasons)

    stored = load_file(ARTIFACTS / "directions.safetensors")["directions"]
    directions = {number: unit_vector(stored[number]) for number in {edit.measurement for edit in plan}}
    with whole_folder(OUTPUT) as partial:
        total = sum((folder / path).stat().st_size for path in base.files)
        with progress("Ablate", total, "B") as advance:
            write_edited(base, partial, plan, directions, advance)
        record = EditRecord(
            base=manifest,
            ablate=params.model_dump(mode="json"),
            directions_sha256=hashlib.sha256((ARTIFACTS / "directions.safetensors").read_bytes()).hexdigest(),
            plan=plan,
            files=digests(partial, base.files),
        )
        write_json(partial / EDIT_RECORD, record)


if __name__ == "__main__":
    run_stage(main)
