"""What is published on GitHub: what a run did, in its pull request, and a release.

Nothing of the branch is executed or checked out. Where and as whom comes from the environment, as GitHub sets it.
"""

import os
from pathlib import Path

from excise.gitops.comment import MARKER, MOST_SAMPLES, render_comment, written_samples
from excise.gitops.difference import difference
from excise.gitops.git import commit_of, fetch, header, push, record
from excise.gitops.github import State, from_environment, setting
from excise.gitops.handover import PICTURES, SAMPLES, accept
from excise.gitops.sides import Commit, check_ran
from excise.plumbing.errors import StageError
from excise.plumbing.files import parse_document
from excise.report.words import headline
from schemas.evidence import GateVerdicts
from schemas.gitops import CARD

PROJECT = Path()
STATES: dict[str, State] = {"pass": "success", "warn": "success", "fail": "failure"}
"""An inconclusive gate of which params.yaml says that it fails is among those that failed."""


def publish(handover: Path) -> None:
    """Commit the files of a run to its branch, keep one comment up to date, and set the status that the gates decide.
    Raises `StageError` where the environment lacks a variable, the files are not those of a run of this commit, the
    branch moved on, GitHub refuses, or a gate fails."""
    place = f"{setting('GITHUB_SERVER_URL')}/{setting('GITHUB_REPOSITORY')}"
    page = f"{place}/actions/runs/{setting('GITHUB_RUN_ID')}"
    base, branch, commit = setting("BASE"), setting("BRANCH"), setting("COMMIT")
    # A branch that is run by hand has no pull request. How many answers are shown is the team's decision, not its own.
    pull_request, samples = _number("PULL_REQUEST"), min(_number("SAMPLES"), MOST_SAMPLES)
    with from_environment() as github:
        files = accept(handover)
        gates = parse_document(GateVerdicts, files["gates.json"], "gates.json", "run `dvc repro` on the branch")

        credentials = header(setting("GITHUB_TOKEN"), setting("GITHUB_SERVER_URL"))
        fetch(PROJECT, commit, credentials)
        parent = commit_of(PROJECT, commit)
        recorded = record(PROJECT, parent, files, PICTURES, f"Record the results of {parent[:12]}")
        # Before anything is pushed: what cannot be shown, or is of another commit, is not recorded either.
        check_ran(Commit(PROJECT, recorded))
        comment = ""
        if pull_request:
            there = samples > 0 and (handover / SAMPLES).is_file()
            shown = written_samples(handover / SAMPLES, samples) if there else []
            comment = render_comment(difference(PROJECT, base, recorded), shown, f"{place}/raw/{recorded}/{PICTURES}")
        if recorded != parent and not push(PROJECT, recorded, parent, branch, credentials):
            raise StageError(f"{branch} moved on while {parent[:12]} ran; what came later is published by its own run")

        if pull_request:
            github.keep_comment(pull_request, MARKER, comment)
        for each in dict.fromkeys([parent, recorded]):
            github.set_status(each, STATES[gates.verdict], headline(gates), page)
    print(f"{headline(gates)}: {recorded}" + ("" if recorded == parent else f", upon {parent}"))
    if gates.verdict == "fail":
        raise StageError("a gate fails; the pull request's comment says which")


def attach(tag: str, folder: Path) -> str:
    """Attach what `make release` wrote to the release of a tag, with the card as its text; the release's address.
    Raises `StageError` where there is no card, no such tag, or GitHub refuses."""
    card = folder / CARD
    if not card.is_file():
        raise StageError(f"{card} is not there; `make release` makes it")
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink())
    with from_environment() as github:
        return github.release(tag, card.read_text(errors="replace"), files)


def _number(name: str) -> int:
    """A variable of the environment that holds a number, or nothing for 0."""
    text = os.environ.get(name) or "0"
    if not text.isdecimal():
        raise StageError(f"{name} must be a number, or empty")
    return int(text)
