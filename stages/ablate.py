"""Stage ablate: base model, directions and rules → plan → the edited model, streamed."""

from pathlib import Path

from excise.checkpoint.weights import CARD, EDIT_DIGEST, EDIT_RECORD
from excise.edit.card import render_card
from excise.edit.checkpoint import write_edited
from excise.edit.resolved import resolve_edit
from excise.plumbing.digests import sha256_line, sha256_of
from excise.plumbing.errors import run_stage
from excise.plumbing.files import whole_folder, write_json, write_text
from excise.plumbing.progress import progress
from schemas.document import FileDigest
from schemas.edit import EditRecord

ARTIFACTS = Path("artifacts")
OUTPUT = Path("models/ablated")


def main() -> None:
    """Resolve the rules, then write the whole model beside its place and move it there."""
    edit = resolve_edit()
    with whole_folder(OUTPUT) as partial:
        total = sum((edit.folder / path).stat().st_size for path in edit.base.files)
        with progress("Ablate", total, "B") as advance:
            digests = write_edited(
                edit.base,
                partial,
                edit.plan,
                edit.pairs,
                edit.params.method == "preserve_column_norms",
                {file.path: file.sha256 for file in edit.manifest.files},
                edit.device,
                advance,
                shifts=edit.shifts,
            )
        card = render_card(edit.manifest, edit.params, edit.rows, edit.spare_layers, edit.base.left_out)
        write_text(partial / CARD, card)
        digests[CARD] = sha256_of(partial / CARD)
        record = EditRecord(
            base=edit.manifest,
            ablate=edit.params.model_dump(mode="json"),
            directions_sha256=sha256_of(ARTIFACTS / "directions.safetensors"),
            expert_use_sha256=sha256_of(ARTIFACTS / "expert_use.json") if edit.shifts else None,
            plan=[one.record() for one in edit.plan],
            router_bias=[shift.record() for shift in edit.shifts],
            spare_layers=edit.spare_layers,
            left_out=list(edit.base.left_out),
            files=[
                FileDigest(path=path, size=(partial / path).stat().st_size, sha256=sha256)
                for path, sha256 in sorted(digests.items())
            ],
        )
        write_json(partial / EDIT_RECORD, record)
        write_text(partial / EDIT_DIGEST, sha256_line(partial / EDIT_RECORD))


if __name__ == "__main__":
    run_stage(main)
