"""The edited model of any commit again: out of the cache, from the remote, or rebuilt; always checked."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from excise.checkpoint.weights import EDIT_DIGEST, EDIT_RECORD, regular_files
from excise.gitops.lock import LOCK, MODEL, Lock, lock_of_model, md5_of, md5_of_folder, read_lock
from excise.gitops.programs import environment, run
from excise.gitops.storage import check_kept
from excise.gitops.trees import REQUIREMENTS, Tree, commit_tree, compare_requirements, locked_environment
from excise.plumbing.errors import StageError
from excise.plumbing.files import MAPPING, digests, md5_of_file, open_plain, read_document, sha256_line, whole_folder
from excise.plumbing.private.dvc import at_commit, changed, get, output, outputs_up_to
from excise.plumbing.private.dvc_remote import WrongObject, fetch, has_remote, read
from excise.plumbing.process import UNPINNED
from excise.plumbing.progress import progress
from schemas.basis.document import FileDigest
from schemas.gitops import Origin

ORIGINS: dict[Origin, str] = {"cache": "from the cache", "remote": "from the remote", "rebuilt": "rebuilt"}
STAGE = "ablate"
REPORT = "report/report.html"

_FILES = TypeAdapter(list[FileDigest])
_REMEDY = "name the folder of an edited model, or fetch it again"


def bring_back(clone: Path, commit: str, out: Path, locked: bool, may_rebuild: bool = True) -> Origin:
    """Write the edited model that a commit recorded into a new or empty folder, every byte checked. Of the clone only
    DVC's cache changes. `locked`: a model that must be rebuilt, if it `may_rebuild`, is built with the commit's own
    packages. Raises `StageError`: there is no such model, or what can be had is not what was recorded."""
    out = out.resolve()
    refuse_full(out)
    recorded = lock_of_model(clone, commit)
    recorded.check_is_whole(commit)
    _check_is_recorded(clone, commit, STAGE)
    origin = _obtain(clone, commit, recorded, locked, may_rebuild)
    with at_commit(clone, commit, with_remote=False) as repo, whole_folder(out) as partial:
        get(repo, MODEL, partial)
        check_recorded(partial, recorded, commit, output(repo, MODEL).listed or {})
        refuse_full(out)  # again: somebody may have put something there meanwhile
    return origin


def bring_report(clone: Path, commit: str, recorded: Lock) -> bytes | None:
    """The report that a commit recorded; None where neither cache nor remote has it. Raises `StageError` where the
    commit's evidence is not of its model."""
    if (md5 := recorded.wrote("report").get(REPORT)) is None:
        return None
    recorded.check_is_whole(commit, recorded.stages)
    _check_is_recorded(clone, commit, "report")
    data = read(clone, commit, REPORT)
    return data if data is not None and md5_of(data) == md5 else None


def _check_is_recorded(clone: Path, commit: str, target: str) -> None:
    with at_commit(clone, commit, with_remote=False) as repo:
        if other := changed(repo, target):
            what = f"at {commit[:12]} {LOCK} is not of its own {other}: `dvc repro` had not run yet"
            raise StageError(f"{what}; name the commit that recorded its results")


def is_free(out: Path) -> bool:
    """Whether a folder can be put there: nothing is, or an empty folder."""
    return not any(out.iterdir()) if out.is_dir() else not (out.exists() or out.is_symlink())


def refuse_full(out: Path) -> None:
    """Raises `StageError` where a folder's place is taken."""
    if not is_free(out):
        raise StageError(f"{out} is there already; name a folder that is not, or an empty one")


def check_recorded(folder: Path, recorded: Lock, commit: str, cached: Mapping[str, Path] = {}) -> None:
    """Raises `StageError` where a folder is not the model that a commit recorded; `cached` are the objects of DVC's
    cache, which takes its files as they are, from which it was copied."""
    if wrong := wrong_file(folder, recorded_files(folder)):
        path, what = wrong
        remedy = f"; in DVC's cache it was changed: delete {cached[path]}, and run again" if path in cached else ""
        raise StageError(f"{path} of this model {what}{remedy}")
    if folder_md5(folder) != recorded.model:
        raise StageError(f"this is not the model that {commit[:12]} recorded in {LOCK}, but another, whole in itself")


def folder_md5(folder: Path) -> str:
    """The MD5 by which DVC knows a folder, several files at a time."""
    paths = regular_files(folder)
    total = sum((folder / path).stat().st_size for path in paths)
    with progress("Digests", total, "B") as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
        md5s = pool.map(lambda path: md5_of_file(folder / path, advance), paths)
        return md5_of_folder(dict(zip(paths, md5s, strict=True)))


def _obtain(clone: Path, commit: str, recorded: Lock, locked: bool, may_rebuild: bool) -> Origin:
    """Have the whole model in DVC's cache."""
    with at_commit(clone, commit, with_remote=False) as repo:
        if not output(repo, MODEL).lacking:
            return "cache"
    with at_commit(clone, commit, with_remote=True) as repo:
        if has_remote(repo):
            unasked = ""
            try:
                fetch(repo, {MODEL})
                if not output(repo, MODEL).lacking:
                    return "remote"
                fetch(repo, outputs_up_to(repo, STAGE))
            except WrongObject:
                raise
            except StageError as error:
                unasked = f", which cannot be asked ({error})"
            missing = f"The model is neither in the cache nor in the remote{unasked}"
        else:
            missing = "The model is not in the cache, and there is no remote to ask"
    if not may_rebuild:
        raise StageError(f"{missing}; rebuild it with `make model` on a machine that may run this commit's code")
    print(f"{missing}: it is rebuilt", flush=True)
    with commit_tree(clone, commit) as tree:
        _rebuild(tree, recorded, _environment(clone, tree, locked))
    return "rebuilt"


def _rebuild(tree: Tree, recorded: Lock, variables: dict[str, str]) -> None:
    """Make the model, and keep it in the cache once it proved to be the recorded one: nothing else gets there, nor into
    DVC's memory of earlier runs."""
    # Without it DVC would train again what is in the cache, as no run of `organism` is kept.
    run(["dvc", "checkout", "--allow-missing", "--with-deps", STAGE], tree.folder)
    done = run(["dvc", "repro", "--no-commit", STAGE], tree.folder, variables, shown=True)
    if done.code != 0:
        raise StageError(f"the model of {tree.commit[:12]} cannot be rebuilt: {done.error}")
    if differs := recorded.difference(read_lock((tree.folder / LOCK).read_text())):
        what = f"rebuilt, the model of {tree.commit[:12]} is not the one that was recorded"
        raise StageError(f"{what}; the first difference: {differs}. `make push` where it was made, and run again")
    kept = run(["dvc", "commit", "--force", "--with-deps", STAGE], tree.folder, variables)
    if kept.code != 0:
        raise StageError(f"the model cannot be kept in DVC's cache: {kept.error}")
    check_kept(tree.folder)


def _environment(clone: Path, tree: Tree, locked: bool) -> dict[str, str]:
    then, found = f"{REQUIREMENTS} of {tree.commit[:12]}", compare_requirements(clone, tree.commit)
    if found == "same":
        return environment()
    if locked and found == "other":
        return locked_environment(tree)
    if locked:
        raise StageError(f"there is no {then}, so nothing says what to install; run without --locked (ENV=locked)")
    what = "is not today's" if found == "other" else "is not there"
    print(f"{then} {what}: what is installed now is used; ENV=locked (--locked) installs what was pinned", flush=True)
    # Whatever differs: that the result is the recorded one is checked to the byte.
    return {**environment(), UNPINNED: "1"}


def recorded_files(folder: Path) -> list[FileDigest]:
    """Every file that edit.json, also of another version, records. Raises `StageError` where it lists none."""
    path = folder / EDIT_RECORD
    try:
        return _FILES.validate_python(read_document(MAPPING, path, _REMEDY).get("files"))
    except ValidationError:
        raise StageError(f"{path} lists no files with their digests, as excise writes it; {_REMEDY}") from None


def has_digest(folder: Path) -> bool:
    """Whether edit.json's own digest lies beside it. Models of earlier versions have none."""
    return (folder / EDIT_DIGEST).exists()


def wrong_file(folder: Path, files: list[FileDigest]) -> tuple[str, str] | None:
    """The path of the first file that is missing, changed or not recorded, and what is wrong with it, or None."""
    recorded = {file.path: file for file in files}
    there = set(regular_files(folder)) - {EDIT_RECORD, EDIT_DIGEST}
    if has_digest(folder):
        with open_plain(folder / EDIT_DIGEST, _REMEDY) as file:
            line = sha256_line(folder / EDIT_RECORD).encode()
            if file.read(len(line) + 1) != line:
                return EDIT_RECORD, f"is not what {EDIT_DIGEST} records: one of the two changed"
    if missing := sorted(recorded.keys() - there):
        return missing[0], "is missing"
    if added := sorted(there - recorded.keys()):
        return added[0], f"is not one of the files that {EDIT_RECORD} records"
    for found in digests(folder, there):
        if found != recorded[found.path]:
            return found.path, f"is not what {EDIT_RECORD} records: its bytes changed"
    return None


def check_edited(folder: Path) -> list[FileDigest]:
    """The files that edit.json records. Raises `StageError` where the folder holds anything else."""
    files = recorded_files(folder)
    if wrong := wrong_file(folder, files):
        path, what = wrong
        raise StageError(f"{folder / path} {what}; {_REMEDY}")
    return files
