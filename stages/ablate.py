"""Stage ablate: base model, directions and rules → plan → the edited model, streamed. `--plan` prints the plan only."""

import sys
from pathlib import Path

from excise.checkpoint.base_model import BaseModel
from excise.checkpoint.weights import CARD, EDIT_DIGEST, EDIT_RECORD
from excise.edit.card import render_card
from excise.edit.checkpoint import write_edited
from excise.edit.layout import spare_layers
from excise.edit.measured import read_directions, read_use
from excise.edit.plan import make_plan, summary
from excise.edit.shifts import make_shifts, odds_by_layer, summary_of_shifts
from excise.plumbing.device import chosen_device
from excise.plumbing.digests import sha256_line, sha256_of
from excise.plumbing.errors import StageError, run_stage
from excise.plumbing.files import whole_folder, write_json, write_text
from excise.plumbing.progress import progress
from excise.report.terminal import print_plan
from schemas.artifacts import EditRecord, FileDigest
from schemas.params import Ablate, read_section

ARTIFACTS = Path("artifacts")
OUTPUT = Path("models/ablated")


def main() -> None:
    """Resolve the rules, then write the whole model beside its place and move it there."""
    only_plan = sys.argv[1:] == ["--plan"]
    if sys.argv[1:] and not only_plan:
        raise StageError(f"unknown arguments {' '.join(sys.argv[1:])}; there is --plan, which prints the plan only")
    params = read_section(Ablate, ARTIFACTS / "params/ablate.json")
    base = BaseModel.open()
    _, directions = read_directions(ARTIFACTS, base.layout)
    edits = make_plan(params, base, directions)
    shifts = make_shifts(params, base, odds_by_layer(read_use(ARTIFACTS, base.layout)))
    rows = [*summary(edits, base.tensors), *summary_of_shifts(shifts, base.tensors)]
    spare, left_out = spare_layers(base.layout, base.tensors), base.checkpoint.left_out
    if only_plan:
        print_plan(rows, spare, left_out)
        return

    with whole_folder(OUTPUT) as partial:
        total = sum((base.folder / path).stat().st_size for path in base.checkpoint.files)
        with progress("Ablate", total, "B") as advance:
            digests = write_edited(base, partial, edits, shifts, chosen_device(), advance)
        write_text(partial / CARD, render_card(base.manifest, params, rows, spare, left_out))
        digests[CARD] = sha256_of(partial / CARD)
        record = EditRecord(
            base=base.manifest,
            ablate=params.model_dump(mode="json"),
            directions_sha256=sha256_of(ARTIFACTS / "directions.safetensors"),
            expert_use_sha256=sha256_of(ARTIFACTS / "expert_use.json") if shifts else None,
            plan=[edit.record() for edit in edits],
            router_bias=[shift.record() for shift in shifts],
            spare_layers=spare,
            left_out=list(left_out),
            files=[
                FileDigest(path=path, size=(partial / path).stat().st_size, sha256=sha256)
                for path, sha256 in sorted(digests.items())
            ],
        )
        write_json(partial / EDIT_RECORD, record)
        write_text(partial / EDIT_DIGEST, sha256_line(partial / EDIT_RECORD))


if __name__ == "__main__":
    run_stage(main)
