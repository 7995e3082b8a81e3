"""What a commit's dvc.lock records: the MD5 of all that its stages read and wrote, and how a folder's is computed."""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from excise.checkpoint.weights import regular_files
from excise.gitops.git import file_of
from excise.plumbing.errors import StageError
from excise.plumbing.progress import Advance, progress
from schemas import plain_yaml
from schemas.wording import ParamsError

MODEL = "models/ablated"
LOCK = "dvc.lock"

_CHUNK = 1 << 20
_WHY = {
    "params": "another version of the code resolves params.yaml otherwise",
    "prepare": "the base model lies outside the repository and changed, or was trained on hardware whose arithmetic "
    "differs",
    "measure": "measured bytes depend on the number of CPU threads (OMP_NUM_THREADS, {threads} here) and on the "
    "hardware: one of them was another",
    "ablate": "though what it is made from is the same: other packages, or a spoiled file in DVC's cache",
}
"""The stages that make the model, in their order, and what makes an output of each differ when no input does."""


@dataclass(frozen=True)
class Recorded:
    """A dvc.lock: stage → path → MD5, which ends in `.dir` for folders."""

    read: dict[str, dict[str, str]]
    wrote: dict[str, dict[str, str]]

    @property
    def model(self) -> str:
        """The MD5 of the edited model's folder."""
        return self.wrote["ablate"][MODEL]

    def check_is_whole(self, commit: str, stages: Iterable[str] = tuple(_WHY)) -> None:
        """Whether each of these stages read what the ones before it wrote.

        Raises:
            StageError: one did not run again after its input had become another.
        """
        made = {path: md5 for stage in self.wrote.values() for path, md5 in stage.items()}
        for stage in stages:
            for path, md5 in self.read.get(stage, {}).items():
                if made.get(path, md5) != md5:
                    raise StageError(
                        f"at {commit[:12]} {stage} had not run on the {path} that was recorded; name a commit at which "
                        "`dvc repro` had run to its end"
                    )

    def difference(self, made: "Recorded") -> str | None:
        """The first output, in the order of the stages that lead to the model, that came out otherwise than recorded
        here, and why that may be; None where none did."""
        for stage, why in _WHY.items():
            for path, md5 in self.wrote.get(stage, {}).items():
                if made.wrote.get(stage, {}).get(path) != md5:
                    return f"{path} ({why.format(threads=os.environ.get('OMP_NUM_THREADS') or 'not set')})"
        return None


def parse_lock(text: str, where: str) -> Recorded:
    """What the text of a dvc.lock records; `where` is what errors call it.

    Raises:
        StageError: it is no such file.
    """
    try:
        stages = plain_yaml.parse_mapping(text, where)["stages"]
        read, wrote = (
            {
                name: {entry["path"]: entry["md5"] for entry in stage.get(side, []) if "md5" in entry}
                for name, stage in stages.items()
            }
            for side in ("deps", "outs")
        )
        return Recorded(read, wrote)
    except ParamsError as error:
        raise StageError(str(error)) from None
    except (KeyError, TypeError, AttributeError):
        raise StageError(f"{where} is not what DVC writes; name a commit at which `dvc repro` had run") from None


def recorded_at(clone: Path, commit: str) -> Recorded:
    """What a commit's dvc.lock records.

    Raises:
        StageError: it has none, or one that knows no edited model.
    """
    where = f"{LOCK} of {commit[:12]}"
    text = file_of(clone, commit, LOCK)
    if text is None:
        raise StageError(f"{commit[:12]} has no {LOCK}, so no model was recorded there; name a later commit")
    recorded = parse_lock(text, where)
    if MODEL not in recorded.wrote.get("ablate", {}):
        raise StageError(f"{where} records no {MODEL}; name a commit at which `dvc repro` had run to its end")
    return recorded


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
