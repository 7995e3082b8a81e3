"""A release of an edited model: its record, its report, and a card of both, gathered from the model's folder and from
the commit that recorded it."""

import hashlib
import shutil
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from excise.checkpoint.weights import EDIT_DIGEST, EDIT_RECORD
from excise.gitops.comment import TEMPLATES
from excise.gitops.difference import versions
from excise.gitops.git import commit_of, file_of
from excise.gitops.lock import lock_of_model
from excise.gitops.models import bring_back, bring_report, check_recorded, has_digest, is_free, refuse_full
from excise.gitops.trees import compare_requirements
from excise.plumbing.files import digests, parse_document, read_document, whole_folder, write_bytes, write_text
from excise.report.words import VERDICTS, headline, measured
from schemas.basis.text import printable
from schemas.edit import EditRecord
from schemas.evidence import Comparisons, GateVerdicts
from schemas.gitops import CARD, Origin, Release

REPORT = "report.html"

_REMEDY = "check that commit out, and make its release there"

Read = TypeVar("Read", bound=BaseModel)


def write_release(clone: Path, tag: str, out: Path, model: Path, locked: bool) -> bool:
    """Write edit.json with its digest, the card, and the report where it can be had; whether it can. Raises
    `StageError` where the model cannot be had, or what is there is not what the commit recorded.

    Args:
        tag: or another name of the commit.
        out: is not there, or an empty folder.
        model: the folder of the commit's model; where there is nothing yet, `bring_back` puts it there.
    """
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
    """All that the card tells. Raises `StageError` where the commit's files are of another version of excise.

    Args:
        folder: of the model, checked already; `md5` is what dvc.lock records of it.
        origin: how it came back; None where it was there.
        report: whether there is one to go with it.
    """
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
    """What the record does not list of the files of its folder."""
    return [EDIT_RECORD, EDIT_DIGEST] if has_digest(folder) else [EDIT_RECORD]


def _at(schema: type[Read], clone: Path, commit: str, path: str) -> Read | None:
    """A document as it was at a commit; None where there was none."""
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
        release=release, came=CAME, locks=LOCKS, cell=cell, headline=headline, measured=measured, verdicts=VERDICTS
    )


def cell(text: str) -> str:
    """Any text, whole, as a code span that nothing in it can end, nor the cell of a table that it stands in."""
    shown = printable(text).replace("`", r"\x60").replace("|", r"\x7c")
    return f"`{shown or ' '}`"
