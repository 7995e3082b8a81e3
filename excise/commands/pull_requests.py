"""Pull requests: what they would change, and what is published of them."""

from pathlib import Path
from typing import Any

from excise.commands.parser import PROJECT, arg, command


@command(
    arg("--base", required=True, help="what to compare with, such as origin/main"),
    arg("--head", help="a commit; by default, the working tree"),
    arg("--folder", type=Path, default=PROJECT, help="the project's folder, by default this one"),
    arg("--pictures", metavar="URL", help="the https address of the folder of pictures to show"),
    arg("--samples", type=int, choices=range(11), default=0, metavar="N", help="answers of each task, at most 10 (0)"),
    arg("--samples-from", type=Path, metavar="FILE", help="read them from such a file, not from results/"),
    arg("--write-samples", type=Path, metavar="FILE", help="write them to a file, for a machine without results/"),
    arg("--out", type=Path, default=Path("report/comment.md"), help="the file to write (report/comment.md)"),
)
def comment(out: Path, **options: Any) -> None:
    """Write a pull request's comment: what a commit, or the working tree, would change in its base."""
    from excise.gitops.comment import write_comment

    write_comment(out=out, **options)
    print(out)


@command()
def merge() -> None:
    """During `git merge`: take from this branch what stages write into git, and print which stages must run."""
    from excise.gitops.merging import finish_merge

    print(finish_merge(PROJECT))


@command(arg("folder", type=Path, help="a new folder"))
def hand_over(folder: Path) -> None:
    """Copy the files of a run that are to be published."""
    from excise.gitops import handover

    print("\n".join(handover.hand_over(PROJECT, folder)))


@command(arg("folder", type=Path, help="the one that `hand-over` wrote"))
def publish(folder: Path) -> None:
    """On GitHub: commit a run's results to its branch, keep the comment, set the status; fail if a gate fails."""
    from excise.gitops import publish

    publish.publish(folder)


@command(arg("tag", help="an existing tag"), arg("folder", type=Path, help="the one that `release` wrote"))
def attach(tag: str, folder: Path) -> None:
    """On GitHub: attach what `release` wrote to the release of a tag."""
    from excise.gitops import publish

    print(publish.attach(tag, folder))
