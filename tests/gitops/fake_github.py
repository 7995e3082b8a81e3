"""A server that answers as GitHub's API does, as far as it is asked."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

OWN = "excise[bot]"


@dataclass
class FakeGitHub:
    """What it was told, and what it is to answer."""

    address: str = ""
    comments: list[dict[str, Any]] = field(default_factory=list)
    statuses: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    releases: dict[str, dict[str, Any]] = field(default_factory=dict)
    assets: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str | None] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    fails: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Method and path, as a regular expression, to a status and a body."""
    tags: set[str] = field(default_factory=lambda: {"model-1", "model-#2"})
    immutable: bool = False
    """Whether a release that is published takes no more files."""
    page: int = 2
    """Comments a page."""

    def say(self, author: str, body: str) -> None:
        """Somebody comments."""
        self.comments.append({"id": len(self.comments) + 1, "author": author, "body": body})

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


@contextmanager
def fake_github() -> Iterator[FakeGitHub]:
    """One server on this machine."""
    hub = FakeGitHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked = f"{self.command} {self.path}"
            hub.asked.append(asked)
            hub.tokens.add(self.headers.get("Authorization"))
            failure = next((hub.fails[pattern] for pattern in hub.fails if re.search(pattern, asked)), None)
            status, said = failure or respond(hub, asked, body)
            data = said if isinstance(said, str) else json.dumps(said)
            self.send_response(status)
            self.send_header("Content-Length", str(len(data.encode())))
            self.end_headers()
            self.wfile.write(data.encode())

        do_GET = do_POST = do_PATCH = do_DELETE = answer

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def respond(hub: FakeGitHub, asked: str, body: bytes) -> tuple[int, Any]:
    """The status and the answer to one question."""
    if asked == "POST /graphql":
        return 200, {"data": {"repository": {"pullRequest": pull_request(hub, json.loads(body)["variables"])}}}
    if found := re.fullmatch(r"POST /repos/team/models/issues/(\d+)/comments", asked):
        hub.say(OWN, json.loads(body)["body"])
        return 201, {"id": len(hub.comments)}
    if found := re.fullmatch(r"PATCH /repos/team/models/issues/comments/(\d+)", asked):
        hub.comments[int(found[1]) - 1]["body"] = json.loads(body)["body"]
        return 200, {}
    if found := re.fullmatch(r"POST /repos/team/models/statuses/([0-9a-f]{40})", asked):
        hub.statuses.append((found[1], json.loads(body)))
        return 201, {}
    if found := re.fullmatch(r"GET /repos/team/models/git/ref/tags/(.+)", asked):
        return (200, {"ref": found[1]}) if unquote(found[1]) in hub.tags else (404, {"message": "Not Found"})
    if found := re.fullmatch(r"GET /repos/team/models/releases/tags/(.+)", asked):
        release = hub.releases.get(unquote(found[1]))  # GitHub finds no drafts by their tag
        return (404, {"message": "Not Found"}) if release is None or release["draft"] else (200, release)
    if asked == "POST /repos/team/models/releases":
        given = json.loads(body)
        made = {"id": 1, "html_url": "https://github.example/release", "assets": [], **given}
        hub.releases[given["tag_name"]] = {**made, "upload_url": f"{hub.address}/uploads{{?name,label}}"}
        return 201, hub.releases[given["tag_name"]]
    if re.fullmatch(r"PATCH /repos/team/models/releases/1", asked):
        (release,) = hub.releases.values()
        release.update(json.loads(body))
        return 200, release
    if asked.startswith("POST /uploads"):
        (name,) = parse_qs(urlsplit(asked.partition(" ")[2]).query)["name"]
        (release,) = hub.releases.values()
        if name in hub.assets or (hub.immutable and not release["draft"]):
            return 422, {"message": "Validation Failed"}
        hub.assets[name] = body
        release["assets"].append({"id": len(hub.asked), "name": name})
        return 201, {}
    if found := re.fullmatch(r"DELETE /repos/team/models/releases/assets/(\d+)", asked):
        (release,) = hub.releases.values()
        (asset,) = (asset for asset in release["assets"] if asset["id"] == int(found[1]))
        release["assets"].remove(asset)
        del hub.assets[asset["name"]]
        return 204, ""
    return 404, {"message": "Not Found"}


def pull_request(hub: FakeGitHub, variables: dict[str, Any]) -> dict[str, Any] | None:
    """A page of the comments of the only pull request there is, number 12."""
    if variables["number"] != 12:
        return None
    begin = int(variables["after"] or 0)
    shown = hub.comments[begin : begin + hub.page]
    nodes = [
        {"databaseId": each["id"], "viewerDidAuthor": each["author"] == OWN, "body": each["body"]} for each in shown
    ]
    more = begin + hub.page < len(hub.comments)
    return {"comments": {"nodes": nodes, "pageInfo": {"hasNextPage": more, "endCursor": str(begin + hub.page)}}}
