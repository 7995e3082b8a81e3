"""Uploading over real HTTP, to a server on this machine that answers as the Hub does: what reaches it, and when nothing
does. Left out: large files, which the Hub has sent to another store; here it asks for all of them in the commit."""

import base64
import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.projects import Project, one_line

pytestmark = pytest.mark.slow

TOKEN = "hf_thisIsNoRealTokenAtAll"
NAME = "somebody/edited"


@dataclass
class Hub:
    """One repository, and what was asked of it."""

    address: str
    there: bool = False
    private: bool = True
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b""})
    refuses: int | None = None
    asked: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and document."""
        if self.refuses is not None:
            return self.refuses, {"error": "no"}
        if path == "/api/repos/create":
            if self.there:
                return 409, {"error": "You already created this model repo", "url": f"{self.address}/{NAME}"}
            self.there, self.private = True, json.loads(body)["visibility"] == "private"
            return 200, {"url": f"{self.address}/{NAME}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.startswith(f"/api/models/{NAME}/preupload/"):
            files = json.loads(body)["files"]
            return 200, {
                "files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            }
        if path.startswith(f"/api/models/{NAME}/commit/"):
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return 200, {"commitUrl": f"{self.address}/{NAME}/commit/{'1' * 40}", "commitOid": "1" * 40}
        if path.startswith(f"/api/models/{NAME}"):
            return 200, {
                "id": NAME,
                "private": self.private,
                "siblings": [{"rfilename": file} for file in self.files],
            }
        return 404, {"error": f"{method} {path}"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            state.asked.append(f"{self.command} {self.path}")
            state.tokens.add(self.headers.get("Authorization"))
            status, document = state.answer(self.command, self.path.partition("?")[0], body)
            data = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing: the test's output is its own."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(finished: Project, tmp_path: Path) -> Path:
    """An edited model that may be spoiled."""
    shutil.copytree(finished.folder / "models/ablated", tmp_path / "model", copy_function=shutil.copyfile)
    return tmp_path / "model"


def upload(
    finished: Project, folder: Path, hub: Hub, *options: str, name: str = NAME, token: str = TOKEN
) -> CompletedProcess[str]:
    home = str(folder.parent / "home")  # where a token of whoever runs the tests does not lie
    return finished.run(
        *("python", "-m", "excise", "upload", str(folder), name, *options),
        **{"HF_ENDPOINT": hub.address, "HF_TOKEN": token, "HF_HOME": home, "HF_HUB_OFFLINE": "0"},
    )


def test_the_whole_model_reaches_a_private_repository(finished: Project, folder: Path, hub: Hub) -> None:
    done = upload(finished, folder, hub)
    assert done.returncode == 0, done.stderr
    assert f"{NAME}/commit/" in done.stdout and hub.private
    assert hub.files == {".gitattributes": b""} | {path.name: path.read_bytes() for path in folder.iterdir()}
    assert hub.tokens - {None} == {f"Bearer {TOKEN}"}
    assert upload(finished, folder, hub).returncode == 0


def test_it_is_public_only_where_that_is_said(finished: Project, folder: Path, hub: Hub) -> None:
    assert upload(finished, folder, hub, "--public").returncode == 0
    assert not hub.private
    hub.files.clear()
    assert "is public on the Hub" in one_line(upload(finished, folder, hub))
    assert not hub.files


def test_what_is_no_whole_edited_model_goes_nowhere(finished: Project, folder: Path, hub: Hub) -> None:
    (folder / "config.json").write_text("{}")
    assert "config.json is not what edit.json records" in one_line(upload(finished, folder, hub))
    (folder / "edit.json").unlink()
    assert "name the folder of an edited model" in one_line(upload(finished, folder, hub))
    assert not hub.asked


def test_no_token_but_that_of_the_environment_is_used(finished: Project, folder: Path, hub: Hub) -> None:
    (folder.parent / "home").mkdir()
    (folder.parent / "home/token").write_text("hf_thatLiesOnThisMachine")
    assert "HF_TOKEN is not set" in one_line(upload(finished, folder, hub, token=""))
    assert not hub.asked
    assert upload(finished, folder, hub).returncode == 0
    assert hub.tokens - {None} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize(("status", "says"), [(401, "is not valid there"), (403, "may not do this"), (400, "no")])
def test_what_the_hub_refuses_is_one_line_without_the_token(
    finished: Project, folder: Path, hub: Hub, status: int, says: str
) -> None:
    hub.refuses = status
    line = one_line(upload(finished, folder, hub))
    assert f"the Hub refused {NAME}" in line and says in line and TOKEN not in line


def test_a_hub_that_cannot_be_reached_is_one_line(finished: Project, folder: Path) -> None:
    assert "cannot be reached" in one_line(upload(finished, folder, Hub("http://127.0.0.1:9")))


@pytest.mark.parametrize("name", ["a/b/c", "with space", "-x/y"])
def test_what_is_no_name_is_one_line(finished: Project, folder: Path, hub: Hub, name: str) -> None:
    done = upload(finished, folder, hub, name=name)
    assert done.returncode != 0 and "Traceback" not in done.stderr and not hub.files.keys() - {".gitattributes"}


def test_a_repository_of_something_else_is_left_as_it_is(finished: Project, folder: Path, hub: Hub) -> None:
    hub.there, hub.files["other.safetensors"] = True, b"mine"
    assert "also holds other.safetensors" in one_line(upload(finished, folder, hub))
    assert hub.files == {".gitattributes": b"", "other.safetensors": b"mine"}


def test_files_that_are_not_of_the_model_stay_here(finished: Project, folder: Path, hub: Hub) -> None:
    (folder / ".cache").mkdir()
    (folder / ".cache/secret").write_text("mine")
    os.makedirs(folder / ".git")
    (folder / ".git/config").write_text("mine")
    assert upload(finished, folder, hub).returncode == 0
    assert not [path for path in hub.files if path.startswith((".cache", ".git/"))]
