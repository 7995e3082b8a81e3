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
    """An empty folder of this user, or of another one where this is root, for whom sshd would need an account of its
    own. Skips the test, with the reason, where no sshd can be had, started or logged in to."""
    pytest.importorskip("dvc_ssh", reason="dvc-ssh is not installed here (make environment)")
    if shutil.which("ssh-keygen") is None:
        pytest.skip("OpenSSH's client, with its ssh-keygen, is not installed here")
    # Without PAM sshd takes no locked account, and nobody's is one where systemd knows it.
    user = pwd.getpwnam("daemon") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    place = Path(tempfile.mkdtemp(prefix="excise-ssh-"))
    try:
        place.chmod(0o755)  # not in pytest's own folder, which nobody else may enter
        sshd, variables, settings = find_sshd(place / "openssh")
        (place / "storage").mkdir()
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / name)], check=True)
        port = free_port()
        (place / "config").write_text(
            f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {place}/host\nAuthorizedKeysFile {place}/user.pub\n"
            "PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            f"Subsystem sftp internal-sftp\n{settings}"
        )
        for path in (place / "storage", place / "host"):
            if os.geteuid() == 0:
                os.chown(path, user.pw_uid, user.pw_gid)
        command = [str(sshd), "-D", "-e", "-f", str(place / "config")]
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(running(command, port, variables, user if os.geteuid() == 0 else None))
            except (RuntimeError, OSError) as error:
                pytest.skip(f"sshd cannot be started here: {' '.join(str(error).split())}")
            line = stack.enter_context(contextlib.closing(Line(port)))
            url = f"ssh://127.0.0.1:{line.port}{place}/storage"
            login = {"user": user.pw_name, "keyfile": str(place / "user")}
            check_login(port, login)
            yield Ssh(line, url, login, {"SSH_AUTH_SOCK": ""}, place / "storage")
    finally:
        shutil.rmtree(place)


def check_login(port: int, login: dict[str, str]) -> None:
    options = ("BatchMode=yes", "IdentitiesOnly=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null")
    settings = [part for option in options for part in ("-o", option)]
    where = ["-i", login["keyfile"], "-P", str(port), f"{login['user']}@127.0.0.1"]
    command = ["sftp", "-q", "-b", "-", "-F", "none", *settings, *where]
    done = subprocess.run(command, input="pwd\n", capture_output=True, text=True, timeout=SECONDS_TO_START)
    if done.returncode != 0:
        pytest.skip(f"sshd takes no login here: {' '.join(done.stderr.split())}")


def find_sshd(unpacked: Path) -> tuple[Path, dict[str, str], str]:
    """An absolute path of sshd, as it demands, with variables and settings that it needs: installed, or unpacked from
    Debian's packages, which needs no root."""
    # Users who are not root rarely have its folder in their path.
    if installed := shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])):
        return Path(installed).absolute(), {}, ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        unpacked.mkdir()
        for command in (
            ["apt-get", "download", *PACKAGES],
            ["sh", "-c", "for each in *.deb; do dpkg -x $each .; done"],
        ):
            subprocess.run(command, cwd=unpacked, check=True, capture_output=True, timeout=60)
        libraries = next(unpacked.rglob("libwrap.so.0")).parent
        # From OpenSSH 9.8 on it consists of several programs.
        parts = {"SshdSessionPath": "sshd-session", "SshdAuthPath": "sshd-auth"}
        places = {name: unpacked / "usr/lib/openssh" / part for name, part in parts.items()}
        settings = "".join(f"{name} {path}\n" for name, path in places.items() if path.is_file())
        return unpacked / "usr/sbin/sshd", {"LD_LIBRARY_PATH": str(libraries)}, settings
    pytest.skip("sshd is not installed here, and Debian's packages of it cannot be downloaded")


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
