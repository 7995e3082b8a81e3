"""What is asked of GitHub. Each step looks at what is there before it writes, so that repeating it, here or in another
job, does nothing twice: a request that failed may have been carried out."""

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import AliasPath, BaseModel, Field

from excise.gitops.requests import NotFound, Passing, Requests
from excise.plumbing.errors import StageError
from schemas.basis.text import printable, shorten

State = Literal["success", "failure", "error", "pending"]
CONTEXT = "excise/gates"
"""The name of the check that gates decide."""

_MOST_PAGES = 100
_PER_PAGE = 100

# Not `databaseId`: the numbers of comments no longer fit into GraphQL's integers of 32 bits.
_COMMENTS = """
query($owner: String!, $name: String!, $number: Int!, $after: String) {
  repository(owner: $owner, name: $name) {
    pullRequest(number: $number) {
      comments(first: 100, after: $after) {
        nodes { fullDatabaseId viewerDidAuthor body }
        pageInfo { hasNextPage endCursor }
      }
    }
  }
}
"""
_UNREADABLE = {"NOT_FOUND", "FORBIDDEN", "INSUFFICIENT_SCOPES"}
"""Types of GraphQL's errors that do not pass."""

Shape = TypeVar("Shape")


class GitHub:
    """One repository, for as long as a `with` block runs, by a token that is sent to the given addresses only. Every
    method raises `StageError` where GitHub refuses, or still fails after some attempts; `sleep` waits between them."""

    def __init__(
        self,
        repository: str,
        token: str,
        api: str,
        graphql: str,
        timeout: float = 30.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._repository = repository
        self._api = api.rstrip("/")
        self._graphql = graphql
        self._requests = Requests(token, timeout, sleep)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._requests.close()

    def keep_comment(self, number: int, marker: str, body: str) -> None:
        """Have one comment of ours that begins with a marker in a pull request; another person's is left alone."""
        self._requests.repeated(self._keep_comment, number, marker, body)

    def set_status(self, commit: str, state: State, description: str, link: str | None) -> None:
        """Set the status of a commit; a description longer than GitHub's 140 characters is cut."""
        status = _Status(state=state, description=shorten(description, 140), target_url=link)
        self._requests.repeated(self._set_status, commit, status)

    def release(self, tag: str, body: str, files: list[Path]) -> str:
        """Have the release of a tag published with these files, in place of those of the same name; its address. Raises
        `StageError` also where there is no such tag: GitHub would make one, wherever its main branch is."""
        content = {"tag_name": tag, "name": tag, "body": body}
        release = self._requests.repeated(self._find_or_draft, tag, content)
        for path in files:
            self._requests.repeated(self._attach, release, path)
        return self._requests.repeated(self._publish, release, content, files)

    def _keep_comment(self, number: int, marker: str, body: str) -> None:
        own = self._own_comments(number, marker)
        if not own:
            self._ask("POST", f"issues/{number}/comments", _Numbered, json={"body": body})
            own = self._own_comments(number, marker)  # another job may have written one, too: both keep the first
        if own and own[0].body != body:
            self._ask("PATCH", f"issues/comments/{own[0].number}", _Numbered, json={"body": body})
        for other in own[1:]:
            self._delete(f"issues/comments/{other.number}")

    def _set_status(self, commit: str, status: "_Status") -> None:
        newest_first = self._ask("GET", f"commits/{commit}/statuses?per_page={_PER_PAGE}", list[_Status])
        if next((each for each in newest_first if each.context == status.context), None) != status:
            self._ask("POST", f"statuses/{commit}", _Status, json=status.model_dump(exclude_none=True))

    def _find_or_draft(self, tag: str, content: dict[str, Any]) -> int:
        """The number of a tag's release, which is made if missing, as a draft until all files are attached: one that is
        published may be immutable."""
        try:
            self._ask("GET", f"git/ref/tags/{quote(tag)}", _Reference)
        except NotFound:
            raise StageError(f"{printable(tag)} is not a tag of {self._repository}; push it first") from None
        with contextlib.suppress(NotFound):
            return self._ask("GET", f"releases/tags/{quote(tag)}", _Release).id
        # Drafts are found in the list only.
        drafts = [each.id for each in self._releases() if each.draft and each.tag_name == tag]
        return min(drafts) if drafts else self._ask("POST", "releases", _Release, json=content | {"draft": True}).id

    def _attach(self, release: int, path: Path) -> None:
        content = path.read_bytes()
        found = self._ask("GET", f"releases/{release}", _Release)
        for asset in found.assets:
            if asset.name == path.name:
                if asset.holds(content):
                    return
                self._delete(f"releases/assets/{asset.id}")  # also one of which the upload was cut off
        kind = {"Content-Type": "application/octet-stream"}
        uploads = self._uploads(found)
        self._requests.send("POST", uploads, _Asset, params={"name": path.name}, content=content, headers=kind)

    def _publish(self, release: int, content: dict[str, Any], files: list[Path]) -> str:
        found = self._ask("GET", f"releases/{release}", _Release)
        sizes = {asset.name: asset.size for asset in found.assets if asset.state == "uploaded"}
        for path in files:
            if sizes.get(path.name) != path.stat().st_size:
                raise Passing(f"GitHub does not show all of {path.name} that was uploaded")
        if (found.draft, found.name, found.body) != (False, content["name"], content["body"]):
            found = self._ask("PATCH", f"releases/{release}", _Release, json=content | {"draft": False})
        return found.html_url

    def _uploads(self, release: "_Release") -> str:
        """Where files of a release are sent. Raises `StageError` where GitHub names another server than its own."""
        address, own = release.upload_url.partition("{")[0], httpx2.URL(self._api)
        servers = {(own.scheme, own.netloc), (own.scheme, re.sub(rb"^api\.", b"uploads.", own.netloc))}
        with contextlib.suppress(httpx2.InvalidURL):
            if (httpx2.URL(address).scheme, httpx2.URL(address).netloc) in servers:
                return address
        raise StageError(f"GitHub names {printable(address)} for uploads, which is not GitHub; nothing was sent")

    def _own_comments(self, number: int, marker: str) -> list["_Comment"]:
        own = [each for each in self._comments(number) if each.is_ours and each.body.startswith(marker)]
        return sorted(own, key=lambda comment: comment.number)

    def _comments(self, number: int) -> Iterator["_Comment"]:
        owner, _, name = self._repository.partition("/")
        variables: dict[str, Any] = {"owner": owner, "name": name, "number": number}
        cursors: list[str | None] = [None]
        while len(cursors) <= _MOST_PAGES:
            question = {"query": _COMMENTS, "variables": variables | {"after": cursors[-1]}}
            answered = self._requests.send("POST", self._graphql, _Comments, json=question)
            if not _UNREADABLE.isdisjoint(error.type for error in answered.errors):
                raise StageError(f"{self._repository} has no pull request {number} that this token can read")
            if answered.errors or answered.page is None:
                what = answered.errors[0].message if answered.errors else "no comments"
                raise Passing(f"GitHub answered POST /graphql with {printable(shorten(what, 200))}")
            yield from filter(None, answered.page.nodes)
            if not answered.page.has_next:
                return
            if answered.page.cursor in cursors:  # also where there is none
                break
            cursors.append(answered.page.cursor)
        raise _endless(f"comments of pull request {number}")

    def _releases(self) -> Iterator["_Release"]:
        for page in range(1, _MOST_PAGES + 1):
            found = self._ask("GET", f"releases?per_page={_PER_PAGE}&page={page}", list[_Release])
            yield from found
            if len(found) < _PER_PAGE:
                return
        raise _endless("releases")

    def _delete(self, path: str) -> None:
        with contextlib.suppress(NotFound):  # it was deleted before
            self._ask("DELETE", path, NoneType)

    def _ask(self, method: str, path: str, shape: type[Shape], **content: Any) -> Shape:
        return self._requests.send(method, f"{self._api}/repos/{self._repository}/{path}", shape, **content)


def _endless(what: str) -> StageError:
    return StageError(f"GitHub's list of {what} does not end within {_MOST_PAGES} pages; run the job again later")


# What is read of GitHub's answers.


class _Comment(BaseModel):
    number: int = Field(validation_alias="fullDatabaseId")
    is_ours: bool = Field(validation_alias="viewerDidAuthor")
    body: str


class _Page(BaseModel):
    nodes: list[_Comment | None]
    has_next: bool = Field(validation_alias=AliasPath("pageInfo", "hasNextPage"))
    cursor: str | None = Field(validation_alias=AliasPath("pageInfo", "endCursor"))


class _Error(BaseModel):
    message: str
    type: str = ""


class _Comments(BaseModel):
    page: _Page | None = Field(None, validation_alias=AliasPath("data", "repository", "pullRequest", "comments"))
    errors: list[_Error] = []


class _Numbered(BaseModel):
    id: int


class _Status(BaseModel):
    state: str
    context: str = CONTEXT
    description: str | None
    target_url: str | None


class _Reference(BaseModel):
    ref: str


class _Asset(BaseModel):
    id: int
    name: str
    state: str
    size: int
    digest: str | None = None  # older servers name none

    def holds(self, content: bytes) -> bool:
        there = (self.state, self.size, self.digest)
        return there == ("uploaded", len(content), f"sha256:{hashlib.sha256(content).hexdigest()}")


class _Release(BaseModel):
    id: int
    tag_name: str
    name: str | None
    body: str | None
    draft: bool
    html_url: str
    upload_url: str
    assets: list[_Asset]
