"""Everything that differs between a base commit and a head, which is a commit or a working tree."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from excise.gitops.git import answer, commit_of
from excise.gitops.handover import PICTURE, PICTURES
from excise.gitops.lock import LOCK, LockError, lock_changes
from excise.gitops.sides import Commit, Side, WorkingTree
from excise.plumbing.errors import StageError
from schemas.basis import plain_yaml
from schemas.basis.text import dotted, show
from schemas.evidence import Comparison, Comparisons, GateVerdicts, ParameterChange
from schemas.gitops import Difference, Evidence, LockChanges
from schemas.params.document import parse
from schemas.wording import ParamsError

PARAMS = "params.yaml"
COMPARISON = "report/comparison.json"
GATES = "gates.json"

MOST_PICTURES = 24
ELSEWHERE = {"model": {"device"}, "measure": {"stream"}}
"""By section of params.yaml, the keys that are no part of what a run is."""

D = TypeVar("D", bound=BaseModel)


class _NoEvidence(ValueError):
    """A file of results that this version does not read. Its text is one line."""


def difference(folder: Path, base: str, head: str | None = None) -> Difference:
    """What a head would change in the base that it branched off.

    Args:
        folder: the project's, in a git repository.
        base: a commit by any name, such as `origin/main`. Compared is what the head shares with it last, as GitHub
            does; the base itself where they share nothing.
        head: a commit by any name; None for what lies in the folder, committed or not.

    Raises:
        StageError: there is no such commit, or the head has no results that this version reads. A base without results
            is no error.
    """
    commit, named = commit_of(folder, head or "HEAD"), commit_of(folder, base)
    shared = (answer(folder, "merge-base", named, commit) or "").strip() or named
    old, committed = Commit(folder, shared), Commit(folder, commit)
    new: Side = committed if head else WorkingTree(folder)
    where = commit if head else str(folder.absolute())
    read = (PARAMS, LOCK, COMPARISON, GATES)
    params, lock, comparison, gates = (_needed(new, path, where) for path in read)
    try:
        now = _evidence(comparison, gates)
        return Difference(
            base=shared,
            base_name=base,
            head=commit,
            uncommitted=[] if head else [path for path in read if new.text(path) != committed.text(path)],
            parameters=_parameters(old.text(PARAMS), params),
            lock=_lock(old.text(LOCK), lock),
            before=_evidence_of(old),
            now=now,
            pictures=_pictures(new),
        )
    except (_NoEvidence, LockError, ParamsError) as error:
        raise StageError(f"{error} (in {where}); run `dvc repro` and commit what it writes") from None


def parameter_changes(before: str, after: str) -> list[ParameterChange]:
    """What differs between two texts of params.yaml, defaults filled in; as they are written where one is of a version
    whose keys are other ones. Of texts that are not YAML nothing is known."""
    readers: tuple[Callable[[str], dict[str, Any]], ...] = (
        lambda text: parse(text).model_dump(mode="json", exclude=ELSEWHERE),
        lambda text: plain_yaml.parse_mapping(text, PARAMS),
    )
    for read in readers:
        try:
            old, new = dict(_flat(read(before))), dict(_flat(read(after)))
        except ParamsError:
            continue
        keys = list(dict.fromkeys([*old, *new]))
        return [
            ParameterChange(key=key, before=old.get(key), after=new.get(key))
            for key in keys
            if old.get(key) != new.get(key)
        ]
    return []


def _needed(side: Side, path: str, where: str) -> str:
    text = side.text(path)
    if text is None:
        raise StageError(f"{path} is not there in {where}; `dvc repro` makes what a comment is written from")
    return text


def _parameters(before: str | None, after: str) -> list[ParameterChange] | None:
    plain_yaml.parse_mapping(after, PARAMS)
    try:
        plain_yaml.parse_mapping(before or "", PARAMS)
    except ParamsError:
        return None
    return parameter_changes(before or "", after)


def _lock(before: str | None, after: str) -> LockChanges:
    try:
        return lock_changes(before, after)
    except LockError:
        return lock_changes(None, after)  # the head's own mistake comes up again


def _evidence_of(base: Side) -> Evidence | None:
    comparison, gates = base.text(COMPARISON), base.text(GATES)
    try:
        return None if comparison is None or gates is None else _evidence(comparison, gates)
    except _NoEvidence:
        return None


def _evidence(comparison: str, gates: str) -> Evidence:
    rows = _document(Comparisons, COMPARISON, comparison).rows
    for row in rows:
        _check(row)
    return Evidence(rows=rows, gates=_document(GateVerdicts, GATES, gates))


def _document(schema: type[D], path: str, text: str) -> D:
    try:
        return schema.model_validate_json(text)
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
        raise _NoEvidence(f"{path}: {dotted(mistake['loc'])}: {mistake['msg']}, for this version") from None


def _check(row: Comparison) -> None:
    """What the schema cannot say: drift alone has no base, and what has no base has no difference from it."""
    of_base = (row.base, row.difference, row.base_interval, row.difference_interval)
    drift = row.metric.startswith("drift.")
    if "." not in row.metric or (of_base != (None,) * 4 if drift else row.base is None or row.difference is None):
        raise _NoEvidence(f"{COMPARISON}: {show(row.metric)} must be of a group, with a base unless it is drift")


def _pictures(side: Side) -> list[str]:
    return [found[1] for name in side.names(PICTURES) if (found := PICTURE.fullmatch(name))][:MOST_PICTURES]


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and value of everything that is neither a mapping nor a list of mappings."""
    parts: Iterable[tuple[object, Any]]
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        parts = enumerate(value)
    else:
        yield key, json.dumps(value, ensure_ascii=False)
        return
    for name, part in parts:
        yield from _flat(part, f"{key}.{name}" if key else str(name))
