"""Two pull requests, of which one was merged first: files that stages write are taken from one side of a merge, because
a mixture of two runs records neither, even where git merges it without a conflict."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from excise.gitops.git import file_of, git
from excise.gitops.lock import LOCK, md5_of, read_lock
from excise.gitops.sides import PARAMS, RESOLVED, WorkingTree, check_ran
from excise.plumbing.errors import StageError
from excise.plumbing.files import has_conflict
from excise.plumbing.graph import GRAPH, read_stages
from excise.plumbing.private.dvc import out_of_date
from schemas.params.document import parse, settings_of_stages
from schemas.wording import ParamsError

_AGAIN = "then run `make merge` again"


def finish_merge(project: Path) -> str:
    """Take and stage what this branch's stages wrote, stage params.yaml as it lies there, and tell what follows. Where
    the stages have run for the merged files, their results are kept. Raises `StageError` or `ParamsError`, with nothing
    changed, where no merge is in progress or a conflict is left for a person."""
    sides = ["HEAD", *_merged_commits(project)]
    of_sides = _generated(file_of(project, side, GRAPH.name) for side in sides)
    _check_resolved(project, of_sides)
    written = _generated([WorkingTree(project).text(GRAPH.name)])
    if not _has_run(project):
        _take_ours(project, written, of_sides)
    present = [path for path in written if (project / path).exists()]
    git(project, "add", "--all", "--", PARAMS, *present)
    if _has_run(project):
        return "The stages have run for what lies here; next: `git commit`"
    return (
        f"{LOCK} and what stages write into git are this branch's again; {PARAMS} is as it lies here\n"
        f"What they read changed, so these stages run: {', '.join(_stages_to_run(project)) or 'none'}\n"
        "A stage after them runs only if what it reads comes out otherwise\n"
        f"Next: `make repro`, `git add {' '.join(written)}`, `git commit`"
    )


def _merged_commits(project: Path) -> list[str]:
    """The commits that are being merged into this branch."""
    for state in ("rebase-merge", "rebase-apply"):
        if _git_file(project, state).exists():
            what = "a rebase is in progress, and this command is for merges"
            raise StageError(f"{what}: `git rebase --abort`, `git merge origin/main`, {_AGAIN}")
    if not (merged := _git_file(project, "MERGE_HEAD")).exists():
        raise StageError("no merge is in progress; `git merge origin/main` begins one")
    return merged.read_text().split()


def _git_file(project: Path, name: str) -> Path:
    return project / git(project, "rev-parse", "--git-path", name).strip()


def _generated(graphs: Iterable[str | None]) -> list[str]:
    """What stages write into git, by dvc.yaml's texts: files, and folders of files."""
    stages = [stage for text in graphs if text is not None for stage in read_stages(text).values()]
    return [LOCK, *sorted({path for stage in stages for path in stage.committed})]


def _check_resolved(project: Path, generated: Sequence[str]) -> None:
    """Raises `StageError` where a conflict is left in a file that people write, `ParamsError` for a bad params.yaml."""
    everywhere = ("-z", "--", ":/")  # where the project is a folder of its repository, also beside it
    unmerged = _paths(line.partition("\t")[2] for line in _lines(project, "ls-files", "--unmerged", *everywhere))
    # Also what `git add` marked as resolved, with the markers still in it.
    added = _paths(line.partition("\t")[2] for line in _lines(project, "ls-files", "--resolve-undo", *everywhere))
    for path in _paths([PARAMS, *unmerged, *added]):
        if any(Path(path).is_relative_to(each) for each in generated):
            continue
        file = project / path
        if file.is_file() and has_conflict(file.read_bytes()):
            raise StageError(f"{path} holds conflict markers of a merge; resolve it, {_AGAIN}")
        if path in unmerged and path != PARAMS:
            raise StageError(f"{path} is in conflict; resolve it, `git add` it, {_AGAIN}")
    if (params := WorkingTree(project).text(PARAMS)) is None:
        raise StageError(f"{PARAMS} is missing; `git checkout HEAD -- {PARAMS}` restores it, {_AGAIN}")
    parse(params)


def _has_run(project: Path) -> bool:
    try:
        check_ran(WorkingTree(project))
    except (StageError, ParamsError):
        return False
    return True


def _take_ours(project: Path, written: Sequence[str], generated: Sequence[str]) -> None:
    """Have this branch's generated files in the index and here. One that it does not have, or that no stage writes any
    more, is removed."""
    ours = _lines(project, "ls-tree", "-r", "-z", "--name-only", "HEAD", "--", *written)
    if ours:
        git(project, "checkout", "--quiet", "HEAD", "--", *ours)
    tracked = _paths(_lines(project, "ls-files", "-z", "--", *generated, *written))
    if others := [path for path in tracked if path not in ours]:
        git(project, "rm", "--force", "--quiet", "--", *others)


def _stages_to_run(project: Path) -> list[str]:
    """The stages whose inputs differ from dvc.lock, in the order of dvc.yaml, as far as is known before any has run."""
    side = WorkingTree(project)
    stages, known = read_stages(side.text(GRAPH.name) or ""), out_of_date(project)
    lock = side.text(LOCK)
    before = {} if lock is None else read_lock(lock).wrote("params")
    after = settings_of_stages(parse(side.text(PARAMS) or ""))
    paths = {f"{RESOLVED}{name}.json": md5_of(text.encode()) for name, text in after.items()}
    changed = {path for path, md5 in paths.items() if before.get(path) != md5}
    return [name for name, stage in stages.items() if name in known or changed.intersection(stage.reads)]


def _lines(project: Path, *arguments: str) -> list[str]:
    """What git lists with `-z`."""
    return [line for line in git(project, *arguments).split("\0") if line]


def _paths(paths: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(paths))
