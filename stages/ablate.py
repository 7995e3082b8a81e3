"""Stage ablate: base model, directions and rules → plan → edited model, which is never in memory as a whole."""

from pathlib import Path

from excise.checkpoint.weights import CARD, EDIT_DIGEST, EDIT_RECORD
from excise.edit.checkpoint import Remainder, render_card, resolve_edit, write_edited
from excise.edit.forecast import current_simulation, print_forecast
from excise.plumbing.errors import run_stage
from excise.plumbing.files import sha256_line, sha256_of, whole_folder, write_json, write_text
from excise.plumbing.machine import chosen_device
from excise.plumbing.progress import progress
from schemas.basis.document import ARTIFACTS, FileDigest
from schemas.edit import EditRecord

OUTPUT = Path("models/ablated")


def main() -> None:
    edit = resolve_edit()
    print_forecast(current_simulation(edit.settings))
    base = edit.base
    with whole_folder(OUTPUT) as partial:
        total = sum((base.folder / path).stat().st_size for path in base.checkpoint.files)
        with progress("Ablate", total, "B") as advance:
            device, remainder = chosen_device(), Remainder()
            digests = write_edited(base, partial, edit.edits, edit.shifts, device, advance, remainder=remainder)
        write_text(partial / CARD, render_card(edit, remainder))
        digests[CARD] = sha256_of(partial / CARD)
        record = EditRecord(
            base=base.manifest,
            ablate=edit.settings.model_dump(mode="json"),
            directions_sha256=sha256_of(ARTIFACTS / "directions.safetensors"),
            expert_use_sha256=sha256_of(ARTIFACTS / "expert_use.json") if edit.shifts else None,
            plan=[planned.record(remainder.of(planned.tensor)) for planned in edit.edits],
            router_bias=[shift.record() for shift in edit.shifts],
            spare_layers=edit.spare_layers,
            left_out=list(base.checkpoint.left_out),
            files=[
                FileDigest(path=path, size=(partial / path).stat().st_size, sha256=digests[path])
                for path in sorted(digests)
            ],
        )
        write_json(partial / EDIT_RECORD, record)
        write_text(partial / EDIT_DIGEST, sha256_line(partial / EDIT_RECORD))


if __name__ == "__main__":
    run_stage(main)
