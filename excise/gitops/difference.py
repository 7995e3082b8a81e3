"""What differs between a base commit and a head, which is a commit or a working tree; and a report's provenance, which
no stage's output holds, as each is a function of its declared inputs only."""

import contextlib
import json
import platform
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from excise.gitops.git import answer, commit_of, file_of
from excise.gitops.handover import PICTURE, PICTURES
from excise.gitops.lock import LOCK, LockError, lock_changes
from excise.gitops.sides import PARAMS, Commit, Side, WorkingTree
from excise.plumbing.errors import StageError
from excise.plumbing.files import Unreadable, parse_document, unreadable
from schemas.basis import plain_yaml
from schemas.basis.text import show
from schemas.evidence import Comparisons, GateVerdicts, ParameterChange, Provenance
from schemas.gitops import Difference, Evidence, LockChanges
from schemas.params.document import parse
from schemas.wording import ParamsError

COMPARISON = "report/comparison.json"
GATES = "gates.json"
PACKAGES = ("torch", "transformers", "lm-eval", "dvc", "numpy", "scipy", "safetensors")

MOST_PICTURES = 24
ELSEWHERE = {"model": {"device"}, "measure": {"stream"}}
"""By section of params.yaml, the keys that are no part of what a run is."""

_REMEDY = "run `dvc repro` and commit what it writes"


def difference(folder: Path, base: str, head: str | None = None) -> Difference:
    """What a head, by default the folder as it lies there, would change in its merge base with `base`, as on GitHub; in
    the base itself where they share nothing. Raises `StageError`: there is no such commit, or the head has no results
    that this version reads. A base without results is not an error."""
    commit, named = commit_of(folder, head or "HEAD"), commit_of(folder, base)
    shared = (answer(folder, "merge-base", named, commit) or "").strip() or named
    old, committed = Commit(folder, shared), Commit(folder, commit)
    new: Side = committed if head else WorkingTree(folder)
    where = commit if head else str(folder.absolute())
    read = (PARAMS, LOCK, COMPARISON, GATES)
    params, lock, comparison, gates = (_needed(new, path, where) for path in read)
    try:
        now = _evidence(comparison, gates, where)
        return Difference(
            base=shared,
            base_name=base,
            head=commit,
            uncommitted=[] if head else [path for path in read if new.text(path) != committed.text(path)],
            parameters=_parameters(old.text(PARAMS), params),
            lock=_lock(old.text(LOCK), lock),
            before=_evidence_of(old),
            now=now,
            pictures=[found[1] for name in new.names(PICTURES) if (found := PICTURE.fullmatch(name))][:MOST_PICTURES],
        )
    except (LockError, ParamsError) as error:
        raise StageError(f"{error} (in {where}); {_REMEDY}") from None


def provenance(folder: Path) -> Provenance:
    """Of the project in a folder; the commit is None where git does not know the project."""
    commit = answer(folder, "rev-parse", "--verify", "--quiet", "HEAD")
    if commit is None or answer(folder, "cat-file", "-e", "HEAD:./params.yaml") is None:
        return Provenance(commit=None, changed_files=[], previous=None, parameters=[], versions=versions())
    previous, path = _previous(folder), folder / PARAMS
    before = None if previous is None else file_of(folder, previous, PARAMS)
    known = before is not None and path.is_file()
    # Also those that git does not know yet.
    listed = answer(folder, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", ".") or ""
    return Provenance(
        commit=commit.strip(),
        changed_files=sorted(entry[3:] for entry in listed.split("\0") if entry),
        previous=previous,
        parameters=parameter_changes(before or "", path.read_text(errors="replace")) if known else [],
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """Of Python and of the packages that results depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def parameter_changes(before: str, after: str) -> list[ParameterChange]:
    """What differs between two texts of params.yaml, with defaults where both fit this version; nothing if not YAML."""
    readers: tuple[Callable[[str], dict[str, Any]], ...] = (
        lambda text: parse(text).model_dump(mode="json", exclude=ELSEWHERE),
        lambda text: plain_yaml.parse_mapping(text, PARAMS),
    )
    for read in readers:
        with contextlib.suppress(ParamsError):
            old, new = (dict(_flat(read(text))) for text in (before, after))
            changed = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
            return [ParameterChange(key=key, before=old.get(key), after=new.get(key)) for key in changed]
    return []


def _previous(folder: Path) -> str | None:
    """The latest commit whose dvc.lock is another than the one that lies there."""
    path = folder / LOCK
    current = path.read_bytes().decode(errors="replace") if path.is_file() else None
    wrote = answer(folder, "rev-list", "--first-parent", "HEAD", "--", LOCK) or ""
    for candidate in ("HEAD", *(f"{commit}^" for commit in wrote.split())):
        if file_of(folder, candidate, LOCK) not in (None, current):
            return (answer(folder, "rev-parse", candidate) or "").strip() or None
    return None


def _needed(side: Side, path: str, where: str) -> str:
    if (text := side.text(path)) is None:
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
    except Unreadable:
        return None


def _evidence(comparison: str, gates: str, where: str = "") -> Evidence:
    """Raises `Unreadable`: these are no results of this version."""
    rows = parse_document(Comparisons, comparison, COMPARISON, _REMEDY, f" in {where}").rows
    for row in rows:
        # What the schema cannot say: drift alone has no base, and what has no base has no difference from it.
        of_base = (row.base, row.difference, row.base_interval, row.difference_interval)
        drift = row.metric.startswith("drift.")
        if "." not in row.metric or (of_base != (None,) * 4 if drift else row.base is None or row.difference is None):
            what = f"has {show(row.metric)}, which must be of a group, with a base unless it is drift"
            raise unreadable(Path(COMPARISON), what, _REMEDY, f" in {where}")
    return Evidence(rows=rows, gates=parse_document(GateVerdicts, gates, GATES, _REMEDY, f" in {where}"))


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, list) and any(isinstance(part, dict) for part in value):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        yield key, json.dumps(value, ensure_ascii=False)
        return
    for name, part in value.items():
        yield from _flat(part, f"{key}.{name}" if key else str(name))
