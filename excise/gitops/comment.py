"""A pull request's comment: `python -m excise.gitops.comment --base origin/main [--head REV] [--out report/comment.md]`, what
a commit, or what lies in a folder, would change in the branch that it is to be merged into. It is refused where the
stages have not run for it.

No answer of a model is shown unless `--samples N` asks for it: a comment is public, and answers to harmful prompts need
not be. They are read from results/, or from what `--write-samples` wrote on a machine that has results/.
"""

import argparse
import re
from pathlib import Path

from excise.gitops.difference import difference
from excise.gitops.git import commit_of
from excise.gitops.ran import check_ran
from excise.gitops.sides import Commit, WorkingTree
from excise.plumbing.artifacts import read_document
from excise.plumbing.errors import StageError, run_stage
from excise.plumbing.files import write_json, write_text
from excise.report.comment import render_comment
from excise.report.quoted import MOST_IN_BLOCK
from schemas.evidence import ChangedSample, TaskChanges
from schemas.gitops import SampleFile

RESULTS = Path("results")
COMMENT = Path("report/comment.md")

MOST_SAMPLES = 10
"""Of a task."""

LARGEST = 4 * 2**20
"""Bytes of a file of samples."""

_ADDRESS = re.compile(r"https://[A-Za-z0-9._~%:/+-]+", re.ASCII)


def main() -> None:
    """Find what differs, and write it down."""
    given = arguments()
    if given.pictures is not None and not _ADDRESS.fullmatch(given.pictures):
        raise StageError(f"--pictures must be the https address of a folder, got {given.pictures}")
    head = commit_of(given.folder, given.head) if given.head else None
    check_ran(Commit(given.folder, head) if head else WorkingTree(given.folder))
    found = difference(given.folder, given.base, head)
    samples = chosen_samples(given)
    if given.write_samples:
        write_json(given.write_samples, SampleFile(tasks=samples))
    pictures = given.pictures.rstrip("/") if given.pictures else None
    write_text(given.out, render_comment(found, samples, pictures))
    print(given.out)


def arguments() -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(
        prog="python -m excise.gitops.comment", description="Write a pull request's comment."
    )
    parser.add_argument("--base", required=True, help="what it is compared with, such as origin/main")
    parser.add_argument("--head", help="a commit; what lies in the folder where none is given")
    parser.add_argument("--folder", type=Path, default=Path(), help="the project, where that is not here")
    parser.add_argument("--pictures", help="the https address of their folder, to show them from")
    parser.add_argument("--samples", type=int, choices=range(MOST_SAMPLES + 1), default=0, help="answers a task (0)")
    parser.add_argument("--samples-from", type=Path, help="read them from such a file, not from results/")
    parser.add_argument("--write-samples", type=Path, help="write them to a file, for a machine without results/")
    parser.add_argument("--out", type=Path, default=COMMENT, help=f"where to ({COMMENT})")
    return parser.parse_args()


def chosen_samples(given: argparse.Namespace) -> list[TaskChanges]:
    """Of each task, as many as asked for of the samples that changed most, their texts cut.

    Raises:
        StageError: they are not there, or are no such samples, or those of something else.
    """
    if not given.samples:
        return []
    if given.samples_from:
        return written_samples(given.samples_from, given.samples)
    if given.head:
        raise StageError("results/ holds the answers of what lies here, which need not be --head; use --samples-from")
    return _first(_from_results(given.folder / RESULTS), given.samples)


def written_samples(path: Path, most: int) -> list[TaskChanges]:
    """Of each task, at most so many of the samples that `--write-samples` wrote.

    Raises:
        StageError: it is no such file.
    """
    if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST:
        raise StageError(f"{path} is no file of less than {LARGEST // 2**20} MiB, as --write-samples writes it")
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


if __name__ == "__main__":
    run_stage(main)
