"""A server that answers as GitHub's API does, as far as it is asked, and fails as it is told to."""

import hashlib
import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote

OWN = "excise[bot]"
MANY = 3_000_000_000
"""Comments that GitHub has already: their numbers need more than 32 bits."""

Answer = tuple[int, Any]

ANSWERS: dict[str, tuple[int, str, dict[str, str]]] = {
    "500": (500, "<html>", {}),
    "503": (503, '{"message": "Service Unavailable"}', {}),
    "429": (429, '{"message": "Too many requests"}', {"Retry-After": "1"}),
    "limited": (403, '{"message": "You have exceeded a secondary rate limit"}', {"Retry-After": "2"}),
    "no JSON": (200, "<html>", {}),
    "half of JSON": (200, '{"id": 1, "dat', {}),
    "another list": (200, '[["x"]]', {}),
    "another object": (200, '{"x": 1}', {}),
}
"""What a fault answers: status, body and headers."""


@dataclass
class Fault:
    """What goes wrong with requests of which method and path match a regular expression."""

    asked: str
    how: str
    """A key of `ANSWERS`; `cut`, `cut within` the answer, `slow`; or `kill`, which is cut behind `stop`."""
    done: bool = False
    """Whether the request is carried out all the same."""
    times: int = 1
    """How many such requests it meets."""
    skip: int = 0
    """How many it lets pass before."""
    stop: Callable[[], object] = lambda: None
    """Called when it has met one."""
    answer: tuple[int, str, dict[str, str]] | None = None
    """What is answered, in place of what `how` names."""


@dataclass
class FakeGitHub:
    """What it was told, and what it is to answer."""

    address: str = ""
    comments: list[dict[str, Any]] = field(default_factory=list)
    statuses: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    releases: list[dict[str, Any]] = field(default_factory=list)
    contents: dict[int, bytes] = field(default_factory=dict)
    """Of each attached file, by its number."""
    tokens: set[str | None] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    fails: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Method and path, as a regular expression, to a status and a body, until it is taken out."""
    faults: list[Fault] = field(default_factory=list)
    tags: set[str] = field(default_factory=lambda: {"model-1", "model-#2"})
    immutable: bool = False
    """Whether a release that is published takes no more files."""
    endless: str = ""
    """Whether lists do not end: by `new` pages, or by one that is its own `next`."""
    page: int = 2
    """Comments a page."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def say(self, author: str, body: str) -> int:
        """Somebody comments; the comment's number."""
        self.comments.append({"id": MANY + next(self.numbers), "author": author, "body": body})
        return int(self.comments[-1]["id"])

    def published(self, tag: str) -> dict[str, Any]:
        """The only release of a tag that is no draft."""
        (release,) = (each for each in self.releases if each["tag_name"] == tag and not each["draft"])
        return release

    @property
    def assets(self) -> dict[str, bytes]:
        """What is attached to all releases."""
        return {asset["name"]: self.contents[asset["id"]] for each in self.releases for asset in each["assets"]}

    @property
    def environment(self) -> dict[str, str]:
        """What leads there."""
        return {
            "GITHUB_API_URL": self.address,
            "GITHUB_GRAPHQL_URL": f"{self.address}/graphql",
            "GITHUB_SERVER_URL": "https://github.example",
            "GITHUB_REPOSITORY": "team/models",
            "GITHUB_RUN_ID": "7",
        }

    def fault(self, asked: str) -> Fault | None:
        """The fault that meets this request."""
        for each in self.faults:
            if each.times and re.search(each.asked, asked):
                if not each.skip:
                    each.times -= 1
                    return each
                each.skip -= 1
        return None


@contextmanager
def fake_github(slow: float = 1.0) -> Iterator[FakeGitHub]:
    """One server on this machine; a slow answer takes so many seconds."""
    hub = FakeGitHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # an answer in two parts would take 40 ms

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked = f"{self.command} {self.path}"
            with hub.lock:
                hub.asked.append(asked)
                hub.tokens.add(self.headers.get("Authorization"))
                fault = hub.fault(asked)
                failure = next((hub.fails[pattern] for pattern in hub.fails if re.search(pattern, asked)), None)
                status, said = failure or (respond(hub, asked, body) if not fault or fault.done else (200, {}))
            data, headers = said if isinstance(said, str) else json.dumps(said), dict[str, str]()
            if fault is not None:
                fault.stop()
                if fault.how in ("cut", "kill"):
                    self.close_connection = True
                    return
                if fault.how == "slow":
                    time.sleep(slow)
                status, data, headers = fault.answer or ANSWERS.get(fault.how, (status, data, headers))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            cut = fault is not None and fault.how == "cut within"
            self.send_header("Content-Length", str(len(data.encode()) + cut))
            self.end_headers()
            self.wfile.write(data.encode())
            self.close_connection = cut or self.close_connection

        do_GET = do_POST = do_PATCH = do_DELETE = answer

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """Say nothing of clients that were killed."""

    with Server(("127.0.0.1", 0), Handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def respond(hub: FakeGitHub, asked: str, body: bytes) -> Answer:
    """The status and the answer to one question."""
    for pattern, answer in ANSWERERS.items():
        if found := re.fullmatch(pattern, asked):
            given = body if "/uploads" in asked else json.loads(body or b"null")
            return answer(hub, given, *map(unquote, found.groups()))
    return 404, {"message": "Not Found"}


def show_comments(hub: FakeGitHub, given: Any) -> Answer:
    """A page of the comments of the only pull request there is, number 12."""
    variables = given["variables"]
    if variables["number"] != 12:
        error = {"type": "NOT_FOUND", "message": "Could not resolve to a PullRequest with this number."}
        return 200, {"data": {"repository": {"pullRequest": None}}, "errors": [error]}
    begin = int(variables["after"] or 0)
    # As GitHub writes integers of more than 32 bits.
    nodes = [
        {"fullDatabaseId": str(each["id"]), "viewerDidAuthor": each["author"] == OWN, "body": each["body"]}
        for each in hub.comments[begin : begin + hub.page]
    ]
    end = begin if hub.endless == "next" else begin + hub.page
    page = {"hasNextPage": bool(hub.endless) or end < len(hub.comments), "endCursor": str(end)}
    return 200, {"data": {"repository": {"pullRequest": {"comments": {"nodes": nodes, "pageInfo": page}}}}}


def comment(hub: FakeGitHub, given: Any) -> Answer:
    return 201, {"id": hub.say(OWN, given["body"]), "body": given["body"]}


def change_comment(hub: FakeGitHub, given: Any, number: str) -> Answer:
    for each in hub.comments:
        if each["id"] == int(number):
            each["body"] = given["body"]
            return 200, {"id": each["id"], "body": each["body"]}
    return 404, {"message": "Not Found"}


def delete_comment(hub: FakeGitHub, given: Any, number: str) -> Answer:
    before = len(hub.comments)
    hub.comments[:] = [each for each in hub.comments if each["id"] != int(number)]
    return (204, "") if len(hub.comments) < before else (404, {"message": "Not Found"})


def show_statuses(hub: FakeGitHub, given: Any, commit: str) -> Answer:
    empty = {"description": None, "target_url": None}
    return 200, [{**empty, **said} for to, said in reversed(hub.statuses) if to == commit]


def set_status(hub: FakeGitHub, given: Any, commit: str) -> Answer:
    hub.statuses.append((commit, given))
    return 201, {"description": None, "target_url": None, **given}


def show_tag(hub: FakeGitHub, given: Any, tag: str) -> Answer:
    return (200, {"ref": f"refs/tags/{tag}"}) if tag in hub.tags else (404, {"message": "Not Found"})


def release_of_tag(hub: FakeGitHub, given: Any, tag: str) -> Answer:
    for each in hub.releases:
        if each["tag_name"] == tag and not each["draft"]:  # GitHub finds no drafts by their tag
            return 200, each
    return 404, {"message": "Not Found"}


def show_releases(hub: FakeGitHub, given: Any, per_page: str, page: str) -> Answer:
    if hub.endless:
        return 200, [{**new_release(hub, {"tag_name": "other", "draft": True})}] * int(per_page)
    begin = (int(page) - 1) * int(per_page)
    return 200, hub.releases[::-1][begin : begin + int(per_page)]


def new_release(hub: FakeGitHub, given: dict[str, Any]) -> dict[str, Any]:
    number = next(hub.numbers)
    made: dict[str, Any] = {
        "id": number,
        "name": None,
        "body": None,
        "html_url": "https://github.example/release",
        "assets": [],
    }
    return {**made, **given, "upload_url": f"{hub.address}/uploads/{number}/assets{{?name,label}}"}


def make_release(hub: FakeGitHub, given: Any) -> Answer:
    hub.releases.append(new_release(hub, given))
    return 201, hub.releases[-1]


def numbered(hub: FakeGitHub, number: str) -> dict[str, Any]:
    return next(each for each in hub.releases if each["id"] == int(number))


def show_release(hub: FakeGitHub, given: Any, number: str) -> Answer:
    return 200, numbered(hub, number)


def change_release(hub: FakeGitHub, given: Any, number: str) -> Answer:
    numbered(hub, number).update(given)
    return 200, numbered(hub, number)


def upload(hub: FakeGitHub, given: bytes, number: str, query: str) -> Answer:
    release, (name,) = numbered(hub, number), parse_qs(query)["name"]
    taken = name in [asset["name"] for asset in release["assets"]]
    if taken or (hub.immutable and not release["draft"]):
        return 422, {"message": "Validation Failed"}
    asset = next(hub.numbers)
    hub.contents[asset] = given
    digest = f"sha256:{hashlib.sha256(given).hexdigest()}"
    release["assets"].append({"id": asset, "name": name, "state": "uploaded", "size": len(given), "digest": digest})
    return 201, release["assets"][-1]


def delete_asset(hub: FakeGitHub, given: Any, number: str) -> Answer:
    for release in hub.releases:
        for asset in release["assets"]:
            if asset["id"] == int(number):
                if hub.immutable and not release["draft"]:
                    return 422, {"message": "Cannot delete asset from an immutable release"}
                release["assets"].remove(asset)
                del hub.contents[asset["id"]]
                return 204, ""
    return 404, {"message": "Not Found"}


REPOSITORY = "/repos/team/models"
ANSWERERS: dict[str, Callable[..., Answer]] = {
    "POST /graphql": show_comments,
    rf"POST {REPOSITORY}/issues/\d+/comments": comment,
    rf"PATCH {REPOSITORY}/issues/comments/(\d+)": change_comment,
    rf"DELETE {REPOSITORY}/issues/comments/(\d+)": delete_comment,
    rf"GET {REPOSITORY}/commits/([0-9a-f]{{40}})/statuses\?per_page=100": show_statuses,
    rf"POST {REPOSITORY}/statuses/([0-9a-f]{{40}})": set_status,
    rf"GET {REPOSITORY}/git/ref/tags/(.+)": show_tag,
    rf"GET {REPOSITORY}/releases/tags/(.+)": release_of_tag,
    rf"GET {REPOSITORY}/releases\?per_page=(\d+)&page=(\d+)": show_releases,
    rf"POST {REPOSITORY}/releases": make_release,
    rf"GET {REPOSITORY}/releases/(\d+)": show_release,
    rf"PATCH {REPOSITORY}/releases/(\d+)": change_release,
    r"POST /uploads/(\d+)/assets\?(.+)": upload,
    rf"DELETE {REPOSITORY}/releases/assets/(\d+)": delete_asset,
}
