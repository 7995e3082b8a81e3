"""What is published on GitHub: what a run did, in its pull request, and a release. Nothing of the branch is executed or
checked out, and settings are environment variables, as GitHub sets them."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import httpx2

from excise.gitops.comment import MARKER, MOST_SAMPLES, render_comment, written_samples
from excise.gitops.difference import difference
from excise.gitops.git import commit_of, fetch, header, push
from excise.gitops.github import GitHub, State
from excise.gitops.handover import PICTURES, SAMPLES, accept, record_run
from excise.gitops.sides import Commit, check_ran
from excise.plumbing.errors import StageError
from excise.plumbing.files import parse_document
from excise.report.words import headline
from schemas.evidence import GateVerdicts
from schemas.gitops import CARD

PROJECT = Path()


def publish(handover: Path, sleep: Callable[[float], None] = time.sleep) -> None:
    """Commit the files of a run to its branch, keep one comment up to date, and set the status that the gates decide.
    After a failure it can be run again: what is done stays as it is. `sleep` waits before a request is repeated. Raises
    `StageError`: a setting is missing, the files are not this commit's, the branch moved on, or a gate is not accepted
    (`GateVerdicts.accepted`)."""
    place = f"{setting('GITHUB_SERVER_URL')}/{setting('GITHUB_REPOSITORY')}"
    page = f"{place}/actions/runs/{setting('GITHUB_RUN_ID')}"
    base, branch, commit = setting("BASE"), setting("BRANCH"), setting("COMMIT")
    # A branch that is run by hand has no pull request. How many answers are shown is the team's decision, not its own.
    pull_request, samples = _number("PULL_REQUEST"), min(_number("SAMPLES"), MOST_SAMPLES)
    with from_environment(sleep) as github:
        files = accept(handover)
        gates = parse_document(GateVerdicts, files["gates.json"], "gates.json", "run `dvc repro` on the branch")

        credentials = header(setting("GITHUB_TOKEN"), setting("GITHUB_SERVER_URL"))
        fetch(PROJECT, commit, credentials)
        parent = commit_of(PROJECT, commit)
        recorded = record_run(PROJECT, parent, files)
        # Before anything is pushed: what cannot be shown, or is of another commit, is not recorded either.
        check_ran(Commit(PROJECT, recorded))
        comment = ""
        if pull_request:
            there = samples > 0 and (handover / SAMPLES).is_file()
            shown = written_samples(handover / SAMPLES, samples) if there else []
            comment = render_comment(difference(PROJECT, base, recorded), shown, f"{place}/raw/{recorded}/{PICTURES}")
        if not push(PROJECT, recorded, parent, branch, credentials):
            raise StageError(f"{branch} moved on while {parent[:12]} ran; what came later is published by its own run")

        if pull_request:
            github.keep_comment(pull_request, MARKER, comment)
        state: State = "success" if gates.accepted else "failure"
        for each in dict.fromkeys([parent, recorded]):
            github.set_status(each, state, headline(gates), page)
    print(f"{headline(gates)}: {recorded}" + ("" if recorded == parent else f", upon {parent}"))
    if not gates.accepted:
        raise StageError(f"{headline(gates)}; the pull request's comment says which")


def attach(tag: str, folder: Path, sleep: Callable[[float], None] = time.sleep) -> str:
    """Attach what `make release` wrote to the release of a tag; its address. As `publish`, it can be run again. Raises
    `StageError` where that fails."""
    card = folder / CARD
    if not card.is_file():
        raise StageError(f"{card} is not there; `make release` makes it")
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink())
    with from_environment(sleep) as github:
        return github.release(tag, card.read_text(errors="replace"), files)


def _number(name: str) -> int:
    text = os.environ.get(name) or "0"
    if not text.isdecimal():
        raise StageError(f"{name} must be a number, or empty")
    return int(text)


def from_environment(sleep: Callable[[float], None]) -> GitHub:
    """The repository that the environment names, by its token. Raises `StageError` where a variable is not set, or is
    not an address or a token."""
    for name in ("GITHUB_API_URL", "GITHUB_GRAPHQL_URL"):
        if not _is_address(setting(name)):
            raise StageError(f"{name} must be an address, such as https://api.github.com")
    token = setting("GITHUB_TOKEN")
    if not re.fullmatch(r"[!-~]+", token):  # errors of HTTP libraries show such a header
        raise StageError("GITHUB_TOKEN must be printable ASCII without spaces and line ends; set it again")
    return GitHub(
        setting("GITHUB_REPOSITORY"), token, setting("GITHUB_API_URL"), setting("GITHUB_GRAPHQL_URL"), sleep=sleep
    )


def setting(name: str) -> str:
    """A variable of the environment, as GitHub's workflows set it. Raises `StageError` where it is not set."""
    if value := os.environ.get(name):
        return value
    raise StageError(f"{name} is not set; the workflows in .github/workflows/ set what is needed")


def _is_address(text: str) -> bool:
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL:
        return False
    return url.scheme in ("http", "https") and bool(url.host)
