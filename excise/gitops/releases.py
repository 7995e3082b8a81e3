"""A release of an edited model: its record, its report, and a card of both."""

import hashlib
import shutil
import sys
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from excise.checkpoint.weights import EDIT_DIGEST, EDIT_RECORD
from excise.gitops.comment import TEMPLATES, WORDS, span
from excise.gitops.difference import versions
from excise.gitops.git import commit_of, file_of
from excise.gitops.lock import lock_of_model
from excise.gitops.models import bring_back, bring_report, check_recorded, has_digest, is_free, refuse_full
from excise.gitops.trees import compare_requirements
from excise.plumbing.files import digests, parse_document, read_document, whole_folder, write_bytes, write_text
from schemas.edit import EditRecord
from schemas.evidence import Comparisons, GateVerdicts
from schemas.gitops import CARD, Origin, Release

REPORT = "report.html"

_REMEDY = "check that commit out, and make its release there"

Read = TypeVar("Read", bound=BaseModel)


def write_release(clone: Path, tag: str, out: Path, model: Path, locked: bool) -> bool:
    """Write edit.json with its digest, the card, and the report where it can be had, into a new or empty folder;
    whether it can. `bring_back` fetches a model that is missing. Raises `StageError` where the model cannot be had, or
    is not what the commit recorded."""
    commit = commit_of(clone, tag)
    recorded = lock_of_model(clone, commit)
    refuse_full(out)
    origin = bring_back(clone, commit, model, locked) if is_free(model) else None
    if origin is None:
        check_recorded(model, recorded, commit)
    report = bring_report(clone, commit, recorded)
    with whole_folder(out.resolve()) as partial:
        release = gather(clone, commit, tag, model, recorded.model or "", origin, locked, report is not None)
        for name in own_files(model):
            shutil.copyfile(model / name, partial / name)
        write_text(partial / CARD, render_release(release))
        if report is not None:
            write_bytes(partial / REPORT, report)
        refuse_full(out)
    return report is not None


def gather(
    clone: Path, commit: str, tag: str, folder: Path, md5: str, origin: Origin | None, locked: bool, report: bool
) -> Release:
    """All that the card says of a checked model, whose MD5 dvc.lock records; `origin` is None where it was there
    already. Raises `StageError` where the commit's files are of another version of excise."""
    record = read_document(EditRecord, folder / EDIT_RECORD, _REMEDY)
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
        # Of the file that `write_json` makes of it.
        base_sha256=hashlib.sha256((record.base.model_dump_json(indent=2) + "\n").encode()).hexdigest(),
        folder_md5=md5,
        files=[*digests(folder, own_files(folder)), *record.files],
        rows=comparisons.rows if comparisons else [],
        gates=_at(GateVerdicts, clone, commit, "gates.json"),
        report=report,
    )


def own_files(folder: Path) -> list[str]:
    """The files of a model that its record does not list."""
    return [EDIT_RECORD, EDIT_DIGEST] if has_digest(folder) else [EDIT_RECORD]


def _at(schema: type[Read], clone: Path, commit: str, path: str) -> Read | None:
    text = file_of(clone, commit, path)
    return None if text is None else parse_document(schema, text, f"{path} of {commit[:12]}", _REMEDY)


CAME: dict[Origin, str] = {
    "cache": "It was taken from DVC's cache.",
    "remote": "It was fetched from DVC's remote.",
    "rebuilt": "It was rebuilt, from what the commit says and what DVC holds.",
}
LOCKS = {
    "same": "`requirements.lock` here is that of the commit.",
    "other": "`requirements.lock` here is another than that of the commit.",
    "none": "The commit has no `requirements.lock`.",
}


def render_release(release: Release) -> str:
    """The whole card, in Markdown with no HTML in it."""
    return TEMPLATES.get_template("release.md.j2").render(
        **WORDS, release=release, came=CAME, locks=LOCKS, cell=lambda text: span(text, sys.maxsize)
    )
