"""The edited model of any commit again: out of the cache, from the remote, or made anew; always checked."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from excise.checkpoint.edited import recorded_files, wrong_file
from excise.gitops.cache import check_kept
from excise.gitops.copying import copy_folder
from excise.gitops.environments import REQUIREMENTS, compare_requirements, locked_environment
from excise.gitops.place import temporary_place
from excise.gitops.processes import run
from excise.gitops.recorded import LOCK, MODEL, Recorded, folder_md5, parse_lock, recorded_at
from excise.gitops.tree import Tree, commit_tree, here
from excise.plumbing.artifacts import Unreadable, read_document
from excise.plumbing.errors import StageError
from excise.plumbing.files import whole_folder
from schemas.release import Origin

ORIGINS: dict[Origin, str] = {"cache": "from the cache", "remote": "from the remote", "rebuilt": "made anew"}
STAGE = "ablate"
REPORT = "report/report.html"

Say = Callable[[str], None]

_LISTED = TypeAdapter(list[dict[str, Any]])
"""What DVC's cache holds of a folder."""


def bring_back(clone: Path, commit: str, out: Path, locked: bool, say: Say) -> Origin:
    """Write the edited model that a commit recorded into a folder, every byte checked.

    Args:
        clone: the project; nothing of it is touched but DVC's cache, which keeps what was fetched or made.
        commit: its 40 digits.
        out: is not there, or an empty folder.
        locked: whether to make the commit's own environment where the model must be made anew.
        say: is told what happens, a line each.

    Raises:
        StageError: there is no such model, it cannot be had, or what can be had is not what was recorded.
    """
    out = out.resolve()
    refuse_full(out)
    recorded = recorded_at(clone, commit)
    recorded.check_is_whole(commit)
    with temporary_place(clone) as place, commit_tree(clone, commit, place) as tree:
        tree.check_is_recorded(STAGE)
        origin = _obtain(clone, tree, place, recorded, locked, say)
        with whole_folder(out) as partial:
            copy_folder(tree.folder / MODEL, partial)
            check_recorded(partial, recorded.model, commit, lambda path: _remedy(tree, recorded.model, path))
            refuse_full(out)  # again: somebody may have put something there meanwhile
    return origin


def bring_report(clone: Path, commit: str, recorded: Recorded) -> bytes | None:
    """The report that a commit recorded, as a page; None where there was none, or neither cache nor remote has it.

    Raises:
        StageError: what the commit holds of its evidence is not of its model.
    """
    md5 = recorded.wrote.get("report", {}).get(REPORT)
    if md5 is None:
        return None
    recorded.check_is_whole(commit, recorded.read)
    with temporary_place(clone) as place, commit_tree(clone, commit, place) as tree:
        tree.check_is_recorded("report")
        if not tree.check_out(REPORT) and tree.remote is not None:
            tree.fetch(REPORT)
            tree.check_out(REPORT)
        found = tree.folder / REPORT
        data = found.read_bytes() if found.is_file() else b""
    return data if hashlib.md5(data, usedforsecurity=False).hexdigest() == md5 else None


def is_free(out: Path) -> bool:
    """Whether a folder can be put there: nothing is, or an empty folder."""
    return not any(out.iterdir()) if out.is_dir() else not (out.exists() or out.is_symlink())


def refuse_full(out: Path) -> None:
    """Raises `StageError` where a folder's place is taken."""
    if not is_free(out):
        raise StageError(f"{out} is there already; name a folder that is not, or an empty one")


def check_recorded(folder: Path, md5: str, commit: str, remedy: Callable[[str], str] = lambda _: "") -> None:
    """Whether a folder is the model that a commit recorded.

    Raises:
        StageError: it is not; with the first file that is wrong, and what `remedy` says of that.
    """
    if wrong := wrong_file(folder, recorded_files(folder)):
        raise StageError(f"{wrong.path} of this model {wrong.what}{remedy(wrong.path)}")
    if folder_md5(folder) != md5:
        raise StageError(
            f"this is not the model that {commit[:12]} recorded in {LOCK}, but another one, whole in itself"
        )


def _obtain(clone: Path, tree: Tree, place: Path, recorded: Recorded, locked: bool, say: Say) -> Origin:
    """Put the model into the tree."""
    if tree.check_out(MODEL):
        return "cache"
    why = None
    if tree.remote is None:
        say("The model is not in the cache, and there is no remote to ask: it is made anew")
    else:
        why = tree.fetch(MODEL)
        if tree.check_out(MODEL):
            return "remote"
        unasked = f", which cannot be asked ({why})" if why else ""
        say(f"The model is neither in the cache nor in the remote{unasked}: it is made anew")
    may_pull = tree.remote is not None and why is None
    _rebuild(tree, recorded, may_pull, _environment(clone, tree, place, locked, say), say)
    return "rebuilt"


def _rebuild(tree: Tree, recorded: Recorded, may_pull: bool, environment: dict[str, str], say: Say) -> None:
    """Make the model with what cache and remote hold of what it is made from, and keep it in the cache once it proved
    to be the one that was recorded: nothing else gets there, nor into DVC's memory of earlier runs."""
    # Whatever is there already: without it DVC would train again what is in the cache, as it keeps no run of `prepare`.
    tree.dvc("checkout", "--with-deps", STAGE)
    if may_pull:
        tree.use_remote()
    pull = ["--pull"] if may_pull else []
    done = run(["dvc", "repro", *pull, "--no-commit", STAGE], tree.folder, environment, say)
    if done.code != 0:
        raise StageError(f"the model of {tree.commit[:12]} cannot be made anew: {done.error}")
    made = parse_lock((tree.folder / LOCK).read_text(), LOCK)
    if differs := recorded.difference(made):
        raise StageError(
            f"made anew, the model of {tree.commit[:12]} is not the one that was recorded; the first difference: "
            f"{differs}. `dvc push` where it was made, and run again"
        )
    kept = run(["dvc", "commit", "--force", "--with-deps", STAGE], tree.folder, environment)
    if kept.code != 0:
        raise StageError(f"the model cannot be kept in DVC's cache: {kept.error}")
    check_kept(tree.folder)


def _environment(clone: Path, tree: Tree, place: Path, locked: bool, say: Say) -> dict[str, str]:
    """What the model is made with."""
    then = f"{REQUIREMENTS} of {tree.commit[:12]}"
    found = compare_requirements(clone, tree.commit)
    if found == "none" and locked:
        raise StageError(f"there is no {then}, so nothing says what to install; run without --locked (ENV=locked)")
    if found == "other" and locked:
        return locked_environment(tree.folder, place, tree.commit, say)
    if found != "same":
        say(
            f"There is no {then}: what is installed now is used"
            if found == "none"
            else f"{then} is not today's: what is installed now is used; ENV=locked (--locked) installs what was pinned"
        )
    return here()


def _remedy(tree: Tree, md5: str, path: str) -> str:
    """What to do about a model that was changed in DVC's cache, which takes its files as they are."""
    try:
        listed = read_document(_LISTED, _cached(tree, md5))
    except Unreadable:
        return ""
    spoiled = next((_cached(tree, file["md5"]) for file in listed if file.get("relpath") == path), None)
    return f"; in DVC's cache it was changed: delete {spoiled}, and run again" if spoiled and spoiled.is_file() else ""


def _cached(tree: Tree, md5: str) -> Path:
    return tree.cache / "files/md5" / md5[:2] / md5[2:]
