"""Whether a folder is what its edit.json says: `python -m excise.gitops.verify [FOLDER]`, by default models/ablated."""

import sys
from pathlib import Path

from excise.checkpoint.edited import check_edited, has_digest
from excise.checkpoint.weights import EDIT_DIGEST, EDIT_RECORD
from excise.plumbing.errors import StageError, run_stage

ABLATED = Path("models/ablated")


def main() -> None:
    """Compute every digest anew. Files beyond those recorded are as wrong as files that changed."""
    if len(sys.argv) > 2:
        raise StageError(f"name one folder, not {len(sys.argv) - 1}; put quotes around a name with spaces")
    folder = Path(sys.argv[1]) if len(sys.argv) == 2 else ABLATED
    print(f"{folder} is what its {EDIT_RECORD} says: {len(check_edited(folder))} files")
    if not has_digest(folder):
        print(f"{EDIT_RECORD} itself is not covered: this model is of a version that wrote no {EDIT_DIGEST}")


if __name__ == "__main__":
    run_stage(main)
