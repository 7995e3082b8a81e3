"""dvc.lock: what every stage read and wrote, by MD5. It is read without DVC, which takes seconds to import."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ValidationError

from excise.gitops.git import file_of
from excise.plumbing.errors import StageError
from schemas.basis import plain_yaml
from schemas.basis.text import dotted
from schemas.gitops import LockChanges, StageChange
from schemas.wording import ParamsError

LOCK = "dvc.lock"
MODEL = "models/ablated"

_WHY = {
    "params": "another version of the code resolves params.yaml otherwise",
    "organism": "it was trained on hardware whose arithmetic differs",
    "prepare": "the base model lies outside the repository and changed",
    "measure": "measured bytes depend on the number of CPU threads (OMP_NUM_THREADS, {threads} here) and on the "
    "hardware: one of them was another",
    "directions": "though they are estimated from the same: other packages, or hardware whose arithmetic differs",
    "ablate": "though what it is made from is the same: other packages, or a spoiled file in DVC's cache",
}
"""The stages that make the model, in their order, and what makes an output of each differ when no input does."""


class LockError(StageError):
    """A text that is not a dvc.lock."""


class File(BaseModel, frozen=True):
    """A file or folder that a stage read or wrote."""

    path: str
    md5: str | None = None
    """Ends in `.dir` for folders; None where DVC does not keep it."""
    size: int | None = None
    nfiles: int | None = None


class Entry(BaseModel, frozen=True):
    """A stage."""

    cmd: str | list[str] | None = None
    deps: list[File] = []
    outs: list[File] = []


class Lock(BaseModel, frozen=True):
    """As much of a dvc.lock as excise needs; DVC may write more."""

    stages: dict[str, Entry]

    def wrote(self, stage: str) -> dict[str, str]:
        """Path and MD5 of what a stage wrote; nothing for a stage that did not run."""
        return _md5s(self.stages[stage].outs) if stage in self.stages else {}

    @property
    def model(self) -> str | None:
        """The MD5 of the edited model's folder."""
        return self.wrote("ablate").get(MODEL)

    def check_is_whole(self, commit: str, stages: Iterable[str] | None = None) -> None:
        """Raises `StageError` if one of these stages, by default the model's, did not run on its recorded inputs."""
        made = {path: md5 for stage in self.stages for path, md5 in self.wrote(stage).items()}
        for stage in _WHY if stages is None else stages:
            for path, md5 in _md5s(self.stages.get(stage, Entry()).deps).items():
                if made.get(path, md5) != md5:
                    what = f"at {commit[:12]} {stage} had not run on the {path} that was recorded"
                    raise StageError(f"{what}; name a commit at which `dvc repro` had run to its end")

    def difference(self, made: "Lock") -> str | None:
        """The model's first output that came out otherwise than recorded, and why; None where none did."""
        for stage, why in _WHY.items():
            others = made.wrote(stage)
            for path, md5 in self.wrote(stage).items():
                if others.get(path) != md5:
                    return f"{path} ({why.format(threads=os.environ.get('OMP_NUM_THREADS') or 'not set')})"
        return None


def read_lock(text: str, name: str = LOCK) -> Lock:
    """The text of a dvc.lock; `name` is what errors call it. Raises `LockError` where it is not one."""
    try:
        return Lock.model_validate(plain_yaml.parse_mapping(text, name))
    except ParamsError as error:
        raise LockError(str(error)) from None
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
        raise LockError(f"{name}: {dotted(mistake['loc'])}: {mistake['msg']}") from None


def lock_of_model(clone: Path, commit: str) -> Lock:
    """The dvc.lock of a commit. Raises `StageError` where it has none, or one that knows no edited model."""
    name = f"{LOCK} of {commit[:12]}"
    if (text := file_of(clone, commit, LOCK)) is None:
        raise StageError(f"{commit[:12]} has no {LOCK}, so no model was recorded there; name a later commit")
    lock = read_lock(text, name)
    if lock.model is None:
        raise StageError(f"{name} records no {MODEL}; name a commit at which `dvc repro` had run to its end")
    return lock


def lock_changes(before: str | None, after: str) -> LockChanges:
    """The stages whose entries differ between two texts of dvc.lock. Raises `LockError` where one is not a dvc.lock."""
    old, new = {} if before is None else read_lock(before).stages, read_lock(after).stages
    names, changes = dict.fromkeys([*new, *old]), []
    for name in names:
        was, now = old.get(name, Entry()), new.get(name, Entry())
        change = StageChange(
            stage=name,
            kind="new" if name not in old else "gone" if name not in new else "changed",
            command=was.cmd != now.cmd,
            dependencies=_other(was.deps, now.deps),
            outputs=_other(was.outs, now.outs),
        )
        if change.kind != "changed" or change.command or change.dependencies or change.outputs:
            changes.append(change)
    return LockChanges(stages=changes, same=len(names) - len(changes))


def md5_of(data: bytes) -> str:
    """The MD5 by which DVC knows a file of these bytes."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def md5_of_folder(files: Mapping[str, str]) -> str:
    """The MD5 by which DVC knows a folder, from those of its files by their paths in it: that of their list."""
    listed = [{"md5": md5, "relpath": path} for path, md5 in sorted(files.items())]
    return md5_of(json.dumps(listed).encode()) + ".dir"


def _md5s(files: Iterable[File]) -> dict[str, str]:
    return {file.path: file.md5 for file in files if file.md5 is not None}


def _other(before: list[File], after: list[File]) -> list[str]:
    old, new = ({file.path: file for file in files} for files in (before, after))
    return [path for path in dict.fromkeys([*new, *old]) if old.get(path) != new.get(path)]
