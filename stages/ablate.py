"""Stage ablate: base model, directions and rules → plan → the edited model, streamed. `--plan` prints the plan only."""

import sys
from pathlib import Path

from excise.checkpoint.manifest import base_checkpoint, base_folder, read_layout, read_manifest, verify
from excise.checkpoint.weights import CARD, EDIT_DIGEST, EDIT_RECORD
from excise.edit.card import render_card
from excise.edit.checkpoint import read_vector, write_edited
from excise.edit.layout import spare_layers
from excise.edit.measured import read_directions, read_use
from excise.edit.odds import odds_by_layer
from excise.edit.pairing import make_pairs
from excise.edit.plan import make_plan, summary
from excise.edit.shifts import make_shifts, summary_of_shifts
from excise.plumbing.device import chosen_device
from excise.plumbing.digests import sha256_line, sha256_of
from excise.plumbing.errors import StageError, run_stage
from excise.plumbing.files import whole_folder, write_json, write_text
from excise.plumbing.progress import progress
from excise.report.terminal import print_plan
from schemas.document import FileDigest
from schemas.edit import EditRecord
from schemas.params.ablate import Ablate
from schemas.params.section import read_settings

ARTIFACTS = Path("artifacts")
OUTPUT = Path("models/ablated")


def main() -> None:
    """Resolve the rules, then write the whole model beside its place and move it there."""
    only_plan = sys.argv[1:] == ["--plan"]
    if sys.argv[1:] and not only_plan:
        raise StageError(f"unknown arguments {' '.join(sys.argv[1:])}; there is --plan, which prints the plan only")
    params = read_settings(Ablate, ARTIFACTS / "params/ablate.json")
    manifest, folder = read_manifest(), base_folder()
    base = base_checkpoint(folder, manifest)
    layout = read_layout()
    statistics, measured = read_directions(ARTIFACTS, layout)
    plan = make_plan(params, layout, base.tensors, [row.reason for row in statistics])
    shifts = make_shifts(params, layout, base.tensors, odds_by_layer(read_use(ARTIFACTS, layout)))
    rows = [*summary(plan, base.tensors), *summary_of_shifts(shifts, base.tensors)]
    spare = spare_layers(layout, base.tensors)
    device = chosen_device()
    verify(folder, manifest)
    pairs = make_pairs(plan, params, measured, lambda name: read_vector(base, name))
    if only_plan:
        print_plan(rows, spare, base.left_out)
        return

    with whole_folder(OUTPUT) as partial:
        total = sum((folder / path).stat().st_size for path in base.files)
        with progress("Ablate", total, "B") as advance:
            digests = write_edited(
                base,
                partial,
                plan,
                pairs,
                params.method == "preserve_column_norms",
                {file.path: file.sha256 for file in manifest.files},
                device,
                advance,
                shifts=shifts,
            )
        write_text(partial / CARD, render_card(manifest, params, rows, spare, base.left_out))
        digests[CARD] = sha256_of(partial / CARD)
        record = EditRecord(
            base=manifest,
            ablate=params.model_dump(mode="json"),
            directions_sha256=sha256_of(ARTIFACTS / "directions.safetensors"),
            expert_use_sha256=sha256_of(ARTIFACTS / "expert_use.json") if shifts else None,
            plan=[edit.record() for edit in plan],
            router_bias=[shift.record() for shift in shifts],
            spare_layers=spare,
            left_out=list(base.left_out),
            files=[
                FileDigest(path=path, size=(partial / path).stat().st_size, sha256=sha256)
                for path, sha256 in sorted(digests.items())
            ],
        )
        write_json(partial / EDIT_RECORD, record)
        write_text(partial / EDIT_DIGEST, sha256_line(partial / EDIT_RECORD))


if __name__ == "__main__":
    run_stage(main)
