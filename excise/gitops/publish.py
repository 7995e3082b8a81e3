"""What is published on GitHub: what a run did, in its pull request, and a release. Nothing of the branch is executed or
checked out, and settings are environment variables, as GitHub sets them."""

import os
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote

import httpx2

from excise.gitops.comment import MARKER, MOST_SAMPLES, render_comment, written_samples
from excise.gitops.difference import difference
from excise.gitops.git import commit_of, fetch, header, push, record
from excise.gitops.handover import PICTURES, SAMPLES, accept
from excise.gitops.sides import Commit, check_ran
from excise.plumbing.errors import StageError
from excise.plumbing.files import parse_document
from excise.report.words import headline
from schemas.basis.text import printable, shorten
from schemas.evidence import GateVerdicts
from schemas.gitops import CARD

PROJECT = Path()
State = Literal["success", "failure", "error", "pending"]
STATES: dict[str, State] = {"pass": "success", "warn": "success", "fail": "failure"}
"""An inconclusive gate of which params.yaml says that it fails is among those that failed."""
CONTEXT = "excise/gates"
"""The name of the check that gates decide."""

_HEADERS = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
_COMMENTS = """
query($owner: String!, $name: String!, $number: Int!, $after: String) {
  repository(owner: $owner, name: $name) {
    pullRequest(number: $number) {
      comments(first: 100, after: $after) {
        nodes { databaseId viewerDidAuthor body }
        pageInfo { hasNextPage endCursor }
      }
    }
  }
}
"""


def publish(handover: Path) -> None:
    """Commit the files of a run to its branch, keep one comment up to date, and set the status that the gates decide.
    Raises `StageError`: a setting is missing, the files are not this commit's, the branch moved on, or a gate fails."""
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
    """Attach what `make release` wrote to the release of a tag; its address. Raises `StageError` where that fails."""
    card = folder / CARD
    if not card.is_file():
        raise StageError(f"{card} is not there; `make release` makes it")
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink())
    with from_environment() as github:
        return github.release(tag, card.read_text(errors="replace"), files)


def _number(name: str) -> int:
    text = os.environ.get(name) or "0"
    if not text.isdecimal():
        raise StageError(f"{name} must be a number, or empty")
    return int(text)


class GitHub:
    """One repository, for as long as a `with` block runs, by a token that is sent to the given addresses only."""

    def __init__(self, repository: str, token: str, api: str, graphql: str, timeout: float = 30.0) -> None:
        self._repository = repository
        self._api = api.rstrip("/")
        self._graphql = graphql
        self._client = httpx2.Client(
            headers=_HEADERS | {"Authorization": f"Bearer {token}"},
            timeout=timeout,
            transport=httpx2.HTTPTransport(retries=3),
            follow_redirects=False,  # which would lead the token elsewhere
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def keep_comment(self, number: int, marker: str, body: str) -> None:
        """Write or rewrite the comment of a pull request that begins with a marker; another person's is left alone."""
        for comment in self._comments(number):
            if comment["viewerDidAuthor"] and str(comment["body"]).startswith(marker):
                self._ask("PATCH", f"issues/comments/{comment['databaseId']}", {"body": body})
                return
        self._ask("POST", f"issues/{number}/comments", {"body": body})

    def set_status(self, commit: str, state: State, description: str, link: str | None) -> None:
        """Set the status of a commit; a description longer than GitHub's 140 characters is cut."""
        status = {"state": state, "context": CONTEXT, "description": shorten(description, 140)}
        self._ask("POST", f"statuses/{commit}", status | ({"target_url": link} if link else {}))

    def release(self, tag: str, body: str, files: list[Path]) -> str:
        """Make or update the release of a tag, and attach files in place of those of the same name; its address. Raises
        `StageError` where there is no such tag: GitHub would make one, wherever its main branch is."""
        named = quote(tag)
        if not self._ask("GET", f"git/ref/tags/{named}", missing={}):
            raise StageError(f"{printable(tag)} is not a tag of {self._repository}; push it first")
        content = {"tag_name": tag, "name": tag, "body": body}
        found = self._ask("GET", f"releases/tags/{named}", missing={})
        # A draft until all files are attached: a release that is published may be immutable.
        found = found or self._ask("POST", "releases", content | {"draft": True})
        attached = {asset["name"]: asset["id"] for asset in found.get("assets", [])}
        uploads = str(found["upload_url"]).partition("{")[0]
        if httpx2.URL(uploads).host not in (httpx2.URL(self._api).host, "uploads.github.com"):
            raise StageError(f"GitHub names {printable(uploads)} for uploads, which is not GitHub; nothing was sent")
        for path in files:
            if path.name in attached:
                self._ask("DELETE", f"releases/assets/{attached[path.name]}")
            kind = {"Content-Type": "application/octet-stream"}
            self._send("POST", uploads, params={"name": path.name}, content=path.read_bytes(), headers=kind)
        published = self._ask("PATCH", f"releases/{found['id']}", content | {"draft": False})
        return str(published["html_url"])

    def _comments(self, number: int) -> list[dict[str, Any]]:
        owner, _, name = self._repository.partition("/")
        variables: dict[str, Any] = {"owner": owner, "name": name, "number": number, "after": None}
        comments: list[dict[str, Any]] = []
        while True:
            answered = self._send("POST", self._graphql, json={"query": _COMMENTS, "variables": variables})
            found = ((answered.get("data") or {}).get("repository") or {}).get("pullRequest")
            if not found:
                raise StageError(f"{self._repository} has no pull request {number} that this token can read")
            comments += found["comments"]["nodes"]
            page = found["comments"]["pageInfo"]
            if not page["hasNextPage"]:
                return comments
            variables["after"] = page["endCursor"]

    def _ask(
        self, method: str, path: str, content: dict[str, Any] | None = None, missing: Any = None
    ) -> dict[str, Any]:
        return self._send(method, f"{self._api}/repos/{self._repository}/{path}", missing=missing, json=content)

    def _send(self, method: str, address: str, missing: Any = None, **given: Any) -> dict[str, Any]:
        """What GitHub answers; `missing`, if there is one, where it knows no such thing."""
        asked = f"{method} {httpx2.URL(address).path}"
        try:
            response = self._client.request(method, address, **given)
        except httpx2.HTTPError as error:
            raise StageError(f"GitHub did not answer {asked}: {printable(str(error))}; run the job again") from None
        if response.status_code == 404 and missing is not None:
            return dict(missing)
        if response.is_error or response.is_redirect:
            raise StageError(f"GitHub refused {asked}: {response.status_code} {_reason(response)}")
        try:
            return dict(response.json()) if response.content else {}
        except ValueError:
            raise StageError(f"GitHub answered {asked} with something that is not JSON; run the job again") from None


def from_environment() -> GitHub:
    """The repository that the environment names, by its token. Raises `StageError` where a variable is not set."""
    api, graphql = setting("GITHUB_API_URL"), setting("GITHUB_GRAPHQL_URL")
    return GitHub(setting("GITHUB_REPOSITORY"), setting("GITHUB_TOKEN"), api, graphql)


def setting(name: str) -> str:
    """A variable of the environment, as GitHub's workflows set it. Raises `StageError` where it is not set."""
    if value := os.environ.get(name):
        return value
    raise StageError(f"{name} is not set; the workflows in .github/workflows/ set what is needed")


def _reason(response: httpx2.Response) -> str:
    try:
        said = str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        said = response.reason_phrase
    hint = "; the token lacks a permission (docs/runner.md lists them)" if response.status_code in (401, 403) else ""
    return printable(shorten(said, 200)) + hint
