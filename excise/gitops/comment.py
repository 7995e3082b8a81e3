"""A pull request's comment. It is refused where the stages have not run for what it tells of.

No answer of a model is shown unless that is asked for: a comment is public, and answers to harmful prompts need not be.
They are read from results/, or from a file that was written on a machine that has results/.
"""

import re
from pathlib import Path

from excise.gitops.difference import difference
from excise.gitops.git import commit_of
from excise.gitops.ran import check_ran
from excise.gitops.rendering import MOST_IN_BLOCK, render_comment
from excise.gitops.sides import Commit, WorkingTree
from excise.plumbing.errors import StageError
from excise.plumbing.files import read_document, write_json, write_text
from schemas.evidence import ChangedSample, TaskChanges
from schemas.gitops import SampleFile

RESULTS = Path("results")
COMMENT = Path("report/comment.md")

MOST_SAMPLES = 10
"""Of a task."""

LARGEST = 4 * 2**20
"""Bytes of a file of samples."""

_ADDRESS = re.compile(r"https://[A-Za-z0-9._~%:/+-]+", re.ASCII)


def write_comment(
    base: str,
    head: str | None = None,
    folder: Path = Path(),
    pictures: str | None = None,
    samples: int = 0,
    samples_from: Path | None = None,
    write_samples: Path | None = None,
    out: Path = COMMENT,
) -> None:
    """Write what a commit, or what lies in a folder, would change in the branch that it is to be merged into.

    Args:
        base: what it is compared with, such as `origin/main`.
        head: a commit; None for what lies in the folder.
        pictures: the https address of a folder to show them from.
        samples: how many answers of each task are shown.
        samples_from: a file that `write_samples` wrote, to read them from.
        write_samples: where to write those that are shown, for a machine without results/.

    Raises:
        StageError: the stages have not run for it, or something that was asked for is not there.
    """
    if pictures is not None and not _ADDRESS.fullmatch(pictures):
        raise StageError(f"--pictures must be the https address of a folder, got {pictures}")
    commit = commit_of(folder, head) if head else None
    check_ran(Commit(folder, commit) if commit else WorkingTree(folder))
    found = difference(folder, base, commit)
    tasks: list[TaskChanges] = []
    if samples and samples_from:
        tasks = written_samples(samples_from, samples)
    elif samples and commit:
        raise StageError("results/ holds the answers of what lies here, which need not be --head; use --samples-from")
    elif samples:
        tasks = _first(_from_results(folder / RESULTS), samples)
    if write_samples:
        write_json(write_samples, SampleFile(tasks=tasks))
    write_text(out, render_comment(found, tasks, pictures.rstrip("/") if pictures else None))


def written_samples(path: Path, most: int) -> list[TaskChanges]:
    """Of each task, at most so many of the samples that `--write-samples` wrote.

    Raises:
        StageError: it is not such a file.
    """
    if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST:
        raise StageError(f"{path} is not a file of less than {LARGEST // 2**20} MiB, as --write-samples writes it")
    return _first(read_document(SampleFile, path, "write it again with --write-samples").tasks, most)


def _from_results(folder: Path) -> list[TaskChanges]:
    if not folder.is_dir():
        raise StageError(f"{folder} is not there: `dvc pull` or `dvc repro` brings the answers, --samples-from a file")
    # Only here: nothing else needs numpy and scipy.
    from excise.comparison.comparison import changes, read_side

    return changes(read_side(folder / "base"), read_side(folder / "ablated"))


def _first(tasks: list[TaskChanges], most: int) -> list[TaskChanges]:
    return [task.model_copy(update={"shown": [_cut(one) for one in task.shown[:most]]}) for task in tasks]


def _cut(sample: ChangedSample) -> ChangedSample:
    """With no more of each text than shows that it is cut."""
    texts = {name: getattr(sample, name)[: MOST_IN_BLOCK + 1] for name in ("prompt", "base", "ablated")}
    return sample.model_copy(update=texts)
