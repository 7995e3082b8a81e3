"""What is published on GitHub: what a run did, in its pull request, and a release.

Nothing of the branch is executed or checked out. Where and as whom comes from the environment, as GitHub sets it.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from excise.gitops.comment import MOST_SAMPLES, written_samples
from excise.gitops.difference import difference
from excise.gitops.git import commit_of
from excise.gitops.github import State, from_environment, setting
from excise.gitops.handover import PICTURES, SAMPLES, accept
from excise.gitops.ran import check_ran
from excise.gitops.recording import fetch, header, push, record
from excise.gitops.sides import Commit
from excise.plumbing.artifacts import parse_document
from excise.plumbing.errors import StageError
from excise.report.comment import MARKER, render_comment
from excise.report.verdicts import headline
from schemas.evidence import GateVerdicts
from schemas.release import CARD

PROJECT = Path()
STATES: dict[str, State] = {"pass": "success", "warn": "success", "fail": "failure"}
"""An inconclusive gate of which params.yaml says that it fails is among those that failed."""


@dataclass(frozen=True)
class Run:
    """The run that is published."""

    repository: str
    """`owner/name`."""
    server: str
    token: str
    number: str | None
    """Of the pull request; None for a branch that was run by hand."""
    base: str
    branch: str
    commit: str
    page: str
    """Where GitHub shows the run."""
    samples: int
    """How many changed answers of each task are shown: the team's decision, not the branch's."""


def publish(handover: Path) -> None:
    """Commit the files of a run to its branch, keep one comment up to date, and set the status that the gates decide.

    Raises:
        StageError: the files are not those of a run of this commit, the branch moved on, GitHub refuses, or a gate
            fails.
    """
    run = the_run()
    files = accept(handover)
    gates = parse_document(GateVerdicts, files["gates.json"], "gates.json", "run `dvc repro` on the branch")

    credentials = header(run.token, run.server)
    fetch(PROJECT, run.commit, credentials)
    parent = commit_of(PROJECT, run.commit)
    recorded = record(PROJECT, parent, files, PICTURES, f"Record the results of {parent[:12]}")
    # Before anything is pushed: what cannot be shown, or is of another commit, is not recorded either.
    check_ran(Commit(PROJECT, recorded))
    shown = comment(run, recorded, handover / SAMPLES) if run.number else ""
    if recorded != parent and not push(PROJECT, recorded, parent, run.branch, credentials):
        raise StageError(f"{run.branch} moved on while {parent[:12]} ran; what came later is published by its own run")

    with from_environment() as github:
        if run.number:
            github.keep_comment(int(run.number), MARKER, shown)
        for commit in dict.fromkeys([parent, recorded]):
            github.set_status(commit, STATES[gates.verdict], headline(gates), run.page)
    print(f"{headline(gates)}: {recorded}" + ("" if recorded == parent else f", upon {parent}"))
    if gates.verdict == "fail":
        raise StageError("a gate fails; the pull request's comment says which")


def attach(tag: str, folder: Path) -> str:
    """Attach what `make release` wrote to the release of a tag, with the card as its text; the release's address.

    Raises:
        StageError: there is no card, no such tag, or GitHub refuses.
    """
    card = folder / CARD
    if not card.is_file():
        raise StageError(f"{card} is not there; `make release` makes it")
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink())
    with from_environment() as github:
        return github.release(tag, card.read_text(errors="replace"), files)


def comment(run: Run, recorded: str, samples: Path) -> str:
    """What the pull request would change, with the pictures of the commit that records it."""
    shown = written_samples(samples, run.samples) if run.samples and samples.is_file() else []
    pictures = f"{run.server}/{run.repository}/raw/{recorded}/{PICTURES}"
    return render_comment(difference(PROJECT, run.base, recorded), shown, pictures)


def the_run() -> Run:
    """What the environment says of it."""
    server, repository = setting("GITHUB_SERVER_URL"), setting("GITHUB_REPOSITORY")
    number = os.environ.get("PULL_REQUEST") or None
    if number is not None and not number.isdecimal():
        raise StageError("PULL_REQUEST must be the number of a pull request, or empty")
    samples = os.environ.get("SAMPLES") or "0"
    if not samples.isdecimal():
        raise StageError("SAMPLES must be a number, or empty")
    return Run(
        repository=repository,
        server=server,
        token=setting("GITHUB_TOKEN"),
        number=number,
        base=setting("BASE"),
        branch=setting("BRANCH"),
        commit=setting("COMMIT"),
        page=f"{server}/{repository}/actions/runs/{setting('GITHUB_RUN_ID')}",
        samples=min(int(samples), MOST_SAMPLES),
    )
