"""Servers of DVC remotes on this machine, which tests start and end: S3 by moto, SSH by OpenSSH."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.projects import Project

PACKAGES = ("openssh-server", "libwrap0")
"""Debian's, of which sshd consists."""
SECONDS_TO_START = 30.0


class Line:
    """A line to a server, which dies after so many bytes from its clients or to them: then it ends each connection and
    takes no other, until it is mended."""

    def __init__(self, server: int) -> None:
        self._server = server
        self._left: int | None = None
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def die_after(self, count: int) -> None:
        self._left = count

    def mend(self) -> None:
        self._left = None

    def close(self) -> None:
        self._left = -1
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()

    @property
    def is_dead(self) -> bool:
        return self._left is not None and self._left < 0

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was shut down
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            if self.is_dead:
                return
            with socket.create_connection(("127.0.0.1", self._server)) as server:
                for each in (client, server):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                ends = {client, server}
                self._open |= ends
                back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
                back.start()
                self._pump(client, server)
                back.join()
                self._open -= ends

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(1 << 14):
                if self._left is not None:
                    self._left -= len(chunk)
                if self.is_dead:
                    break
                target.sendall(chunk)
        for each in [*self._open] if self.is_dead else [source, target]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True)
class Server:
    """A remote on a server, behind a line."""

    line: Line
    url: str
    settings: dict[str, str]
    """Of the remote, as DVC calls them."""
    variables: dict[str, str]

    def add_to(self, project: Project) -> None:
        """Make it the default remote of a project, whose key only this clone knows."""
        project.check("dvc", "remote", "add", "--local", "--default", "storage", self.url)
        for name, value in self.settings.items():
            project.check("dvc", "remote", "modify", "--local", "storage", name, value)

    def read(self, md5: str) -> bytes:
        """An object."""
        raise NotImplementedError

    def write(self, md5: str, data: bytes) -> None:
        """Put other bytes in its place."""
        raise NotImplementedError


@dataclass(frozen=True)
class S3(Server):
    place: str = ""
    """The address of the bucket's folder, past the line."""

    def read(self, md5: str) -> bytes:
        with urllib.request.urlopen(self._request(md5)) as answer:
            return bytes(answer.read())

    def write(self, md5: str, data: bytes) -> None:
        urllib.request.urlopen(self._request(md5, data)).close()

    def _request(self, md5: str, data: bytes | None = None) -> urllib.request.Request:
        # Moto checks no signature, only that there is one.
        signed = {
            "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request",
            "Content-Type": "application/octet-stream",
        }
        address = f"{self.place}/files/md5/{md5[:2]}/{md5[2:]}"
        return urllib.request.Request(address, data, signed, method="GET" if data is None else "PUT")


@dataclass(frozen=True)
class Ssh(Server):
    folder: Path = Path()

    def read(self, md5: str) -> bytes:
        return (self.folder / "files/md5" / md5[:2] / md5[2:]).read_bytes()

    def write(self, md5: str, data: bytes) -> None:
        (self.folder / "files/md5" / md5[:2] / md5[2:]).write_bytes(data)


@contextlib.contextmanager
def s3() -> Iterator[S3]:
    """An empty bucket."""
    for module in ("moto", "dvc_s3"):
        pytest.importorskip(module, reason="dvc-s3 and moto are not installed here (make environment)")
    port = free_port()
    with running([sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)], port):
        bucket = f"http://127.0.0.1:{port}/bucket"
        urllib.request.urlopen(urllib.request.Request(bucket, method="PUT")).close()
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "not-a-secret", "AWS_MAX_ATTEMPTS": "1"}
        with contextlib.closing(Line(port)) as line:
            settings = {"endpointurl": f"http://127.0.0.1:{line.port}", "region": "us-east-1"}
            yield S3(line, "s3://bucket/excise", settings, keys, f"{bucket}/excise")


@contextlib.contextmanager
def ssh() -> Iterator[Ssh]:
    """An empty folder of this user, or of nobody where this is root, for whom sshd would need an account of its own."""
    pytest.importorskip("dvc_ssh", reason="dvc-ssh is not installed here (make environment)")
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    place = Path(tempfile.mkdtemp(prefix="excise-ssh-"))
    try:
        place.chmod(0o755)  # not in pytest's own folder, which nobody else may enter
        sshd, libraries = find_sshd(place / "openssh")
        (place / "storage").mkdir()
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / name)], check=True)
        port = free_port()
        (place / "config").write_text(
            f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {place}/host\nAuthorizedKeysFile {place}/user.pub\n"
            "PidFile none\nStrictModes no\nUsePAM yes\nPasswordAuthentication no\nSubsystem sftp internal-sftp\n"
        )
        for path in (place / "storage", place / "host"):
            if os.geteuid() == 0:
                os.chown(path, user.pw_uid, user.pw_gid)
        command = [str(sshd), "-D", "-e", "-f", str(place / "config")]
        with (
            running(command, port, {"LD_LIBRARY_PATH": str(libraries)}, user if os.geteuid() == 0 else None),
            contextlib.closing(Line(port)) as line,
        ):
            settings = {"user": user.pw_name, "keyfile": str(place / "user")}
            url = f"ssh://127.0.0.1:{line.port}{place}/storage"
            yield Ssh(line, url, settings, {"SSH_AUTH_SOCK": ""}, place / "storage")
    finally:
        shutil.rmtree(place)


def find_sshd(unpacked: Path) -> tuple[Path, Path]:
    """Debian's sshd and its libraries: installed, or unpacked from its packages, which needs no root."""
    if (installed := Path("/usr/sbin/sshd")).is_file():
        return installed, unpacked
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        unpacked.mkdir()
        for command in (
            ["apt-get", "download", *PACKAGES],
            ["sh", "-c", "for each in *.deb; do dpkg -x $each .; done"],
        ):
            subprocess.run(command, cwd=unpacked, check=True, capture_output=True, timeout=60)
        libraries = next(unpacked.rglob("libwrap.so.0")).parent
        return unpacked / "usr/sbin/sshd", libraries
    pytest.skip("Debian's openssh-server is not installed here")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def running(
    command: list[str], port: int, variables: dict[str, str] | None = None, user: pwd.struct_passwd | None = None
) -> Iterator[None]:
    """A server, as soon as it listens, until the block ends."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            user=user.pw_uid if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
        )
        try:
            until = time.monotonic() + SECONDS_TO_START
            while not listens(port):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    raise RuntimeError(f"{command[0]} did not start: {log.read()}")
                time.sleep(0.1)
            yield
        finally:
            process.kill()
            process.wait()


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
