"""Which stages another dvc.lock has run, and why."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from schemas import plain_yaml
from schemas.gitops import LockChanges, StageChange
from schemas.text import dotted
from schemas.wording import ParamsError

NAME = "dvc.lock"

File = dict[str, Any]
"""A path with its digest."""


class LockError(ValueError):
    """A text that is no dvc.lock. Its own text is one line."""


class _Part(BaseModel):
    """As much of a part of dvc.lock as is asked for here; DVC may write more."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Entry(_Part):
    """A stage."""

    cmd: str | list[str] | None = None
    deps: list[File] = []
    outs: list[File] = []


class _Lock(_Part):
    stages: dict[str, Entry] = {}


def lock_changes(before: str | None, after: str) -> LockChanges:
    """The stages of which two texts of dvc.lock have another entry; without a first one, every stage is new.

    Raises:
        LockError: one of them is no dvc.lock.
    """
    old, new = {} if before is None else read_lock(before), read_lock(after)
    changes = [_change(name, old.get(name), new.get(name)) for name in dict.fromkeys([*new, *old])]
    found = [change for change in changes if change is not None]
    return LockChanges(stages=found, same=len(changes) - len(found))


def read_lock(text: str) -> Mapping[str, Entry]:
    """The stages of the text of a dvc.lock. Raises `LockError`."""
    try:
        return _Lock.model_validate(plain_yaml.parse_mapping(text, NAME)).stages
    except ParamsError as error:
        raise LockError(str(error)) from None
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
        raise LockError(f"{NAME}: {dotted(mistake['loc'])}: {mistake['msg']}") from None


def _change(name: str, old: Entry | None, new: Entry | None) -> StageChange | None:
    """None where a stage's entry is the same."""
    before, after = old or Entry(), new or Entry()
    change = StageChange(
        stage=name,
        kind="new" if old is None else "gone" if new is None else "changed",
        command=before.cmd != after.cmd,
        dependencies=_other(before.deps, after.deps),
        outputs=_other(before.outs, after.outs),
    )
    same = change.kind == "changed" and not (change.command or change.dependencies or change.outputs)
    return None if same else change


def _other(before: list[File], after: list[File]) -> list[str]:
    """The paths of files that differ; in whatever order they are listed."""
    old, new = ({str(file.get("path")): file for file in files} for files in (before, after))
    return [path for path in dict.fromkeys([*new, *old]) if old.get(path) != new.get(path)]
