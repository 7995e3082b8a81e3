"""What a release tells of a model: gathered from its folder, and from the commit that recorded it."""

import hashlib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from excise.checkpoint.edited import has_digest
from excise.checkpoint.weights import EDIT_DIGEST, EDIT_RECORD
from excise.gitops.environments import compare_requirements
from excise.gitops.git import file_of
from excise.gitops.provenance import versions
from excise.plumbing.artifacts import open_plain, parse_document
from excise.plumbing.digests import digests
from schemas.edit import EditRecord
from schemas.evidence import Comparisons, GateVerdicts
from schemas.release import Origin, Release

Read = TypeVar("Read", bound=BaseModel)


def gather(
    clone: Path, commit: str, tag: str, folder: Path, md5: str, origin: Origin | None, locked: bool, report: bool
) -> Release:
    """All that the card tells.

    Args:
        folder: of the model, checked already; `md5` is what dvc.lock records of it.
        origin: how it came back; None where it was there.
        locked: whether the commit's own packages were asked for.
        report: whether there is one to go with it.

    Raises:
        StageError: the commit's files are of another version of excise.
    """
    own = folder / EDIT_RECORD
    record = _parsed(EditRecord, open_plain(own).read(), EDIT_RECORD, commit)
    comparisons = _at(Comparisons, clone, commit, "report/comparison.json")
    lock = compare_requirements(clone, commit)
    return Release(
        tag=tag,
        commit=commit,
        origin=origin,
        versions=versions(),
        lock=lock,
        locked=locked and origin == "rebuilt" and lock == "other",
        base=record.base,
        base_sha256=_sha256_as_written(record.base),
        folder_md5=md5,
        files=[*digests(folder, own_files(folder)), *record.files],
        rows=comparisons.rows if comparisons is not None else [],
        gates=_at(GateVerdicts, clone, commit, "gates.json"),
        report=report,
    )


def own_files(folder: Path) -> list[str]:
    """What the record does not list of the files of its folder."""
    return [EDIT_RECORD, EDIT_DIGEST] if has_digest(folder) else [EDIT_RECORD]


def _at(schema: type[Read], clone: Path, commit: str, path: str) -> Read | None:
    """A document as it was at a commit; None where there was none."""
    text = file_of(clone, commit, path)
    return None if text is None else _parsed(schema, text, path, commit)


def _parsed(schema: type[Read], text: str | bytes, path: str, commit: str) -> Read:
    return parse_document(schema, text, f"{path} of {commit[:12]}", "check that commit out, and make its release there")


def _sha256_as_written(document: BaseModel) -> str:
    """Of the file that `write_json` makes of it."""
    return hashlib.sha256((document.model_dump_json(indent=2) + "\n").encode()).hexdigest()
