"""A server that answers as the Hub does where a model is uploaded. Left out: large files, which the Hub has sent to
another store; here it asks for all of them in the commit."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

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

    def environment(self, home: Path) -> dict[str, str]:
        """What leads there; in `home` lies no token of whoever runs the tests."""
        return {"HF_ENDPOINT": self.address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}


@contextmanager
def fake_hub() -> Iterator[Hub]:
    """One server on this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            hub.asked.append(f"{self.command} {self.path}")
            hub.tokens.add(self.headers.get("Authorization"))
            status, document = hub.answer(self.command, self.path.partition("?")[0], body)
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
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
