"""Whether a folder is what its edit.json says: `python -m stages.verify [FOLDER]`, by default models/ablated."""

import sys
from pathlib import Path

from schemas.artifacts import EditRecord
from stages.base.manifest import digests
from stages.base.stage import StageError, run_stage
from stages.base.weights import EDIT_RECORD, regular_files

ABLATED = Path("models/ablated")


def main() -> None:
    """Compute every digest anew. Files beyond those recorded are as wrong as files that changed."""
    if len(sys.argv) > 2:
        raise StageError(f"name one folder, not {len(sys.argv) - 1}; put quotes around a name with spaces")
    folder = Path(sys.argv[1]) if len(sys.argv) == 2 else ABLATED
    try:
        record = EditRecord.model_validate_json((folder / EDIT_RECORD).read_text())
    except FileNotFoundError:
        raise StageError(f"{folder / EDIT_RECORD} is not there; name the folder of an edited model") from None
    except ValueError:
        raise StageError(f"{folder / EDIT_RECORD} is not what this version of excise writes") from None
    recorded = {file.path: file for file in record.files}
    there = set(regular_files(folder)) - {EDIT_RECORD}
    if missing := sorted(recorded.keys() - there):
        raise StageError(f"{folder / missing[0]} is missing")
    if added := sorted(there - recorded.keys()):
        raise StageError(f"{folder / added[0]} is not one of the files that {EDIT_RECORD} records")
    for found in digests(folder, there):
        if found != recorded[found.path]:
            raise StageError(f"{folder / found.path} is not what {EDIT_RECORD} records: its bytes changed")
    print(f"{folder} is what its {EDIT_RECORD} says: {len(there)} files")


if __name__ == "__main__":
    run_stage(main)
