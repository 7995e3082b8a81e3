"""The files that a run leaves to be published: copied, and checked before they are committed, as they come from a job
that ran a pull request's code: no link is followed, no path leaves the folder, and sizes are limited."""

import json
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from excise.gitops.git import record
from excise.gitops.lock import LOCK, LockError, read_lock
from excise.plumbing.errors import StageError
from excise.plumbing.files import write_bytes
from schemas.basis.text import printable
from schemas.evidence import Comparisons, GateVerdicts

DOCUMENTS: dict[str, type[BaseModel] | None] = {
    LOCK: None,
    "gates.json": GateVerdicts,
    "metrics.json": None,
    "report/comparison.json": Comparisons,
    "report/report.md": None,
}
"""All files that stages write outside DVC's cache, and what each must hold; they are committed."""

PICTURES = "report/pictures"
PICTURE = re.compile(r"([a-z0-9_-]{1,40})\.svg", re.ASCII)
REPORT = "report/report.html"
"""For people to read; never committed, nor are samples: both show answers."""
SAMPLES = "samples.json"

MOST_BYTES = 8_000_000
MOST_PICTURES = 100


def hand_over(project: Path, target: Path) -> list[str]:
    """Copy what a run left to an empty folder; the paths of its files. Raises `StageError` where one is missing."""
    pictures = sorted(f"{PICTURES}/{path.name}" for path in (project / PICTURES).glob("*.svg"))
    paths = [*DOCUMENTS, *pictures, REPORT]
    if missing := [path for path in paths if not (project / path).is_file()]:
        raise StageError(f"{missing[0]} is not there; `make repro` makes it")
    if target.exists() and any(target.iterdir()):
        raise StageError(f"{target} is not empty; name a new folder")
    for path in paths:
        write_bytes(target / path, (project / path).read_bytes())
    return paths


def accept(handover: Path) -> dict[str, bytes]:
    """The files to be committed, by their paths in the project. Raises `StageError` where one is not acceptable."""
    folder = handover / PICTURES
    for part in (folder.parent, folder):  # the handover's own folders could be links, too
        if part.is_symlink():
            raise StageError(f"{part} is a link; nothing was accepted")
    pictures = sorted(f"{PICTURES}/{path.name}" for path in folder.iterdir()) if folder.is_dir() else []
    if len(pictures) > MOST_PICTURES:
        raise StageError(f"{folder} holds {len(pictures)} files; {MOST_PICTURES} are accepted")
    accepted = {path: _read(handover / path) for path in [*DOCUMENTS, *pictures]}
    for path in pictures:
        if not PICTURE.fullmatch(path.removeprefix(f"{PICTURES}/")) or not accepted[path].startswith(
            (b"<?xml", b"<svg")
        ):
            raise StageError(f"{printable(str(handover / path))} is not an SVG picture; nothing was accepted")
    for path, schema in DOCUMENTS.items():
        _check(handover / path, accepted[path], schema)
    return accepted


def record_run(project: Path, commit: str, files: Mapping[str, bytes]) -> str:
    """Commit a run's files, as `accept` gives them, upon the commit that ran: the new commit, the same each time."""
    return record(project, commit, files, PICTURES, f"Record the results of {commit[:12]}")


def _read(path: Path) -> bytes:
    try:
        found = path.lstat()
    except FileNotFoundError:
        raise StageError(f"{path} is missing; the run did not end well") from None
    if not stat.S_ISREG(found.st_mode):
        raise StageError(f"{path} is not a plain file; nothing was accepted")
    if found.st_size > MOST_BYTES:
        raise StageError(f"{path} has {found.st_size:,} bytes, more than {MOST_BYTES:,}; nothing was accepted")
    return path.read_bytes()


def _check(path: Path, data: bytes, schema: type[BaseModel] | None) -> None:
    try:
        text = data.decode()
        if schema is not None:
            schema.model_validate_json(text)
        elif path.name == LOCK:
            read_lock(text)
        elif path.suffix == ".json" and not isinstance(json.loads(text), dict):
            raise ValueError
    # ValueError is also that of decoding, of JSON and of schemas; RecursionError that of JSON nested without end.
    except (ValueError, RecursionError, LockError):
        what = "is not what a run writes, as the main branch knows it; nothing was accepted"
        raise StageError(f"{path} {what}") from None
