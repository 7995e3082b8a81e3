"""A Hub on this machine: it speaks the part of the Hub's API that fetching uses, over real HTTP, and can go wrong.

Repositories of models and of data sets, with commits and a `main` that moves. Left out: xet storage, and the second
host to which the real Hub sends whoever downloads a large file.
"""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

Kind = Literal["models", "datasets"]

TOKEN = "hf_thisIsNoRealTokenAtAll"
_LARGE = (".safetensors", ".bin", ".pt", ".pth", ".parquet", ".tar.gz", ".model")
"""How the names of files end that the Hub keeps as large ones, by their SHA-256 and not as objects of git."""
_API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<rest>.+)")
_FILE = re.compile(r"/(?P<data>datasets/)?(?P<name>[^/]+(?:/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_PIECE = 1 << 16
HEADER = "bytes=0-100000"
"""What the library asks for to read a header; what goes wrong with files spares it."""


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Repository:
    """Files by commit, the oldest first."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit that a revision is, and its files; None where there is none such."""
        commit = list(self.commits)[-1] if revision == "main" else revision
        return (commit, self.commits[commit]) if commit in self.commits else None


@dataclass
class Hub:
    """What it holds, what was asked of it about a repository, and what goes wrong."""

    address: str
    repositories: dict[tuple[Kind, str], Repository] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    gated: Literal[401, 403] | None = None
    """What is answered to whoever asks for a file's bytes."""
    broken: int | None = None
    """A status that is answered to everything."""
    cut_after: int | None = None
    """Bytes of a file after which the connection is cut."""
    cuts: int = 0
    """How many times more that happens."""
    spoiled: set[str] = field(default_factory=set)
    """Paths of files whose bytes come out wrong, in the right number."""

    def add(self, name: str, files: Mapping[str, bytes], kind: Kind = "models") -> str:
        """A new commit of a repository, which is made where there is none. Gives its 40 digits; `main` moves there."""
        repository = self.repositories.setdefault((kind, name), Repository())
        commit = hashlib.sha1(f"{kind} {name} {len(repository.commits)}".encode()).hexdigest()
        repository.commits[commit] = dict(files)
        return commit

    def add_folder(self, name: str, folder: Path) -> str:
        """A new commit of a model's repository with every file below a folder."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return self.add(name, files)

    def downloads(self) -> list[str]:
        """The path of every file whose bytes were asked for, in that order, but for headers of weights."""
        found = [_FILE.fullmatch(asked.path) for asked in self.asked if asked.method == "GET" and asked.range != HEADER]
        return [match["path"] for match in found if match]

    def environment(self, home: Path, token: str = "") -> dict[str, str]:
        """What makes another process use this Hub, and keep what it fetches below `home`."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_DATASETS_CACHE": str(home / "datasets"),
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": token,
            "TRANSFORMERS_OFFLINE": "0",
        }

    def use(self, monkeypatch: pytest.MonkeyPatch, home: Path, token: str = "") -> None:
        """Make this very process use this Hub, keep what it fetches below `home`, and not wait between its attempts."""
        for name, value in self.environment(home, token).items():
            monkeypatch.setenv(name, value)
        constants = "huggingface_hub.constants"
        monkeypatch.setattr(f"{constants}.ENDPOINT", self.address)
        template = f"{self.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(f"{constants}.HF_HOME", str(home))
        monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(f"{constants}.HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
        # A download is taken up again after its last whole piece, and the library's own are of 10 MB.
        monkeypatch.setattr(f"{constants}.DOWNLOAD_CHUNK_SIZE", 1000)
        monkeypatch.setattr("time.sleep", lambda _: None)


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """A Hub with nothing in it, for as long as the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {}))
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    server.RequestHandlerClass.hub = hub  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def git_blob(data: bytes) -> str:
    """The name that git gives to a file's bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _is_large(path: str) -> bool:
    return path.endswith(_LARGE)


def _entry(path: str, data: bytes) -> dict[str, Any]:
    """A file as a tree lists it."""
    if not _is_large(path):
        return {"type": "file", "path": path, "size": len(data), "oid": git_blob(data)}
    sha256 = hashlib.sha256(data).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n".encode()
    lfs = {"oid": sha256, "size": len(data), "pointerSize": len(pointer)}
    return {"type": "file", "path": path, "size": len(data), "oid": git_blob(pointer), "lfs": lfs}


def _tree(files: Mapping[str, bytes], folder: str, recursive: bool) -> list[dict[str, Any]]:
    below = f"{folder}/" if folder else ""
    folders: dict[str, None] = {}
    listed = []
    for path, data in sorted(files.items()):
        if not path.startswith(below):
            continue
        parts = path[len(below) :].split("/")
        depths = range(1, len(parts)) if recursive else range(1, min(2, len(parts)))
        folders.update((below + "/".join(parts[:depth]), None) for depth in depths)
        if recursive or len(parts) == 1:
            listed.append(_entry(path, data))
    directories = [{"type": "directory", "path": path, "size": 0, "oid": git_blob(path.encode())} for path in folders]
    return [*directories, *listed]


def _sibling(path: str, data: bytes) -> dict[str, Any]:
    """A file as a repository's description lists it."""
    entry = _entry(path, data)
    described = {"rfilename": path, "size": entry["size"], "blobId": entry["oid"]}
    if lfs := entry.get("lfs"):
        described["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
    return described


class _Refused(Exception):
    """What is answered instead: a status, and the Hub's own word for the reason."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        address = urlsplit(self.path)
        path, query = unquote(address.path), parse_qs(address.query)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        api, file = _API.fullmatch(path), _FILE.fullmatch(path)
        if api or file:  # and not what the library asks on its own account
            asked = Asked(self.command, path, self.headers.get("Range"), self.headers.get("Authorization"))
            self.hub.asked.append(asked)
        try:
            if self.hub.broken is not None:
                raise _Refused(self.hub.broken, message="out of order")
            if api:
                kind: Kind = "models" if api["kind"] == "models" else "datasets"
                self._send_json(self._document(kind, api["rest"], query, body))
            elif file:
                self._send_file("datasets" if file["data"] else "models", file["name"], file["revision"], file["path"])
            else:
                raise _Refused(404, message=f"no such page: {path}")
        except _Refused as refused:
            self._refuse(refused)

    def _document(self, kind: Kind, rest: str, query: dict[str, list[str]], body: str) -> Any:
        names = [name for known, name in self.hub.repositories if known == kind and f"{rest}/".startswith(f"{name}/")]
        if not names:
            raise _Refused(404, "RepoNotFound", "Repository not found")
        name = max(names, key=len)
        what, _, more = rest[len(name) :].strip("/").partition("/")
        revision, _, folder = more.partition("/")
        commit, files = self._files(kind, name, revision or "main")
        if what == "tree":
            return _tree(files, folder, query.get("recursive", [""])[0].lower() in ("true", "1"))
        if what == "paths-info":
            given = parse_qs(body).get("paths", []) if not body.startswith("{") else json.loads(body)["paths"]
            entries = {entry["path"]: entry for entry in _tree(files, "", recursive=True)}
            return [entries[path] for path in given if path in entries]
        if what in ("", "revision"):
            siblings = [_sibling(path, data) for path, data in sorted(files.items())]
            return {
                "id": name,
                "sha": commit,
                "private": False,
                "gated": bool(self.hub.gated),
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": siblings,
            }
        raise _Refused(404, message=f"no such question: {what}")

    def _files(self, kind: Kind, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repository = self.hub.repositories.get((kind, name))
        if repository is None:
            raise _Refused(404, "RepoNotFound", "Repository not found")
        found = repository.files(revision)
        if found is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def _send_file(self, kind: Kind, name: str, revision: str, path: str) -> None:
        commit, files = self._files(kind, name, revision)
        if self.hub.gated is not None:
            raise _Refused(self.hub.gated, "GatedRepo", f"Access to {kind[:-1]} {name} is restricted")
        if path not in files:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        data, entry = files[path], _entry(path, files[path])
        start, stop = self._range(len(data))
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{entry.get("lfs", entry)["oid"]}"')
        if "lfs" in entry:
            self.send_header("X-Linked-Etag", f'"{entry["lfs"]["oid"]}"')
            self.send_header("X-Linked-Size", str(len(data)))
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if self.command != "HEAD":
            spoiled = path in self.hub.spoiled and self.headers.get("Range") != HEADER
            self._send_bytes(bytes(len(data)) if spoiled else data, start, stop)

    def _range(self, size: int) -> tuple[int, int]:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return 0, size
        return int(asked[1]), min(size, int(asked[2]) + 1) if asked[2] else size

    def _send_bytes(self, data: bytes, start: int, stop: int) -> None:
        cut = self.hub.cut_after
        if cut is not None and self.hub.cuts > 0 and stop - start > cut and self.headers.get("Range") != HEADER:
            self.hub.cuts -= 1
            self.wfile.write(data[start : start + cut])
            self.close_connection = True
            return
        for begin in range(start, stop, _PIECE):
            self.wfile.write(data[begin : min(begin + _PIECE, stop)])

    def _refuse(self, refused: _Refused) -> None:
        self.send_response(refused.status)
        if refused.code:
            self.send_header("X-Error-Code", refused.code)
        self.send_header("X-Error-Message", refused.message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_json(self, document: Any) -> None:
        data = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: the test's output is its own."""
