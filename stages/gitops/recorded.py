"""What a commit's dvc.lock records: the MD5 of every output, and how one folder's is computed."""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from schemas import plain_yaml
from schemas.wording import ParamsError
from stages.base.git import file_of
from stages.base.progress import Advance, progress
from stages.base.stage import StageError
from stages.base.weights import regular_files

MODEL = "models/ablated"
LOCK = "dvc.lock"

_CHUNK = 1 << 20
_WHY = {
    "params": "another version of the code resolves params.yaml otherwise",
    "prepare": "the base model lies outside the repository and changed, or was trained on hardware whose arithmetic "
    "differs",
    "measure": "measuring runs on hardware whose arithmetic differs",
    "ablate": "though what it is made from is the same: other packages, or a spoiled file in DVC's cache",
}
"""The stages that make the model, in their order, and what makes an output of each differ when no input does."""


def recorded_outputs(lock: str, where: str) -> dict[str, dict[str, str]]:
    """Stage → path → MD5 (ending in `.dir` for folders), of the text of a dvc.lock; `where` is what errors call it.

    Raises:
        StageError: it is no such file.
    """
    try:
        stages = plain_yaml.parse_mapping(lock, where)["stages"]
        return {
            name: {output["path"]: output["md5"] for output in stage.get("outs", []) if "md5" in output}
            for name, stage in stages.items()
        }
    except ParamsError as error:
        raise StageError(str(error)) from None
    except (KeyError, TypeError, AttributeError):
        raise StageError(f"{where} is not what DVC writes; name a commit at which `dvc repro` had run") from None


def recorded_at(clone: Path, commit: str) -> dict[str, dict[str, str]]:
    """The same of a commit.

    Raises:
        StageError: it has no dvc.lock, or that one knows no edited model.
    """
    where = f"{LOCK} of {commit[:12]}"
    lock = file_of(clone, commit, LOCK)
    if lock is None:
        raise StageError(f"{commit[:12]} has no {LOCK}, so no model was recorded there; name a later commit")
    recorded = recorded_outputs(lock, where)
    if MODEL not in recorded.get("ablate", {}):
        raise StageError(f"{where} records no {MODEL}; name a commit at which `dvc repro` had run to its end")
    return recorded


def difference(recorded: Mapping[str, Mapping[str, str]], made: Mapping[str, Mapping[str, str]]) -> str | None:
    """The first output, in the order of the stages that lead to the model, that came out otherwise than recorded, and
    why that may be; None where none did."""
    for stage, why in _WHY.items():
        for path, md5 in recorded.get(stage, {}).items():
            if made.get(stage, {}).get(path) != md5:
                return f"{path} ({why})"
    return None


def folder_md5(folder: Path) -> str:
    """A folder's MD5 as DVC computes it: that of the list of its files and theirs."""
    paths = regular_files(folder)
    total = sum((folder / path).stat().st_size for path in paths)
    with progress("Digests", total, "B") as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda path: _md5_of(folder / path, advance), paths))
    listed = [{"md5": md5, "relpath": path} for path, md5 in zip(paths, found, strict=True)]
    return hashlib.md5(json.dumps(listed).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _md5_of(path: Path, advance: Advance) -> str:
    md5 = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            md5.update(chunk)
            advance(len(chunk))
    return md5.hexdigest()
