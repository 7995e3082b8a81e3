"""Real servers as DVC remotes, S3 and SSH: a new clone gets everything from them and nothing else, and one that dies is
tried again."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gitops.servers import Server, s3, ssh
from tests.gitops.test_verified import FILE, all_right, flipped
from tests.projects import Project, one_line, stages_run

EACH = pytest.mark.parametrize("server", ["s3", "ssh"], indirect=True)
ONE_IN_SLOW = {
    name: pytest.mark.parametrize(
        "server",
        [pytest.param(each, marks=() if each == name else pytest.mark.nightly) for each in ("s3", "ssh")],
        indirect=True,
    )
    for name in ("s3", "ssh")
}
"""The other server has its turn at night."""

pytestmark = pytest.mark.slow

MADE = ("models/base", "artifacts", "answers", "results")


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """An empty remote on a server."""
    with s3() if request.param == "s3" else ssh() as server:
        yield server


@pytest.fixture(scope="module")
def maker(finished: Project, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project that makes what is pushed."""
    place = tmp_path_factory.mktemp("maker")
    shutil.copytree(finished.folder, place / "project", symlinks=True)
    project = Project(place / "project")
    server.add_to(project)
    return project


@pytest.fixture
def clone(maker: Project, server: Server, tmp_path: Path) -> Project:
    """A new clone, with a cache of its own, which is empty."""
    maker.check("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone")
    clone.check("dvc", "config", "--local", "cache.dir", str(tmp_path / "cache"))
    server.add_to(clone)
    return clone


def excise(project: Project, server: Server, *command: str) -> str:
    done = project.excise(*command, **server.variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def failed(project: Project, server: Server, *command: str) -> str:
    done = project.excise(*command, **server.variables)
    assert done.returncode == 1, done.stdout + done.stderr
    return one_line(done)


def files(project: Project) -> dict[str, bytes]:
    """What stages made and a remote keeps."""
    paths = [path for folder in MADE for path in (project.folder / folder).rglob("*") if path.is_file()]
    return {path.relative_to(project.folder).as_posix(): path.read_bytes() for path in paths}


@EACH
def test_a_push_to_a_server_that_died_is_whole_after_the_next(maker: Project, server: Server) -> None:
    """The first test of this file: what it pushes is what the others get."""
    server.line.die_after(300_000)
    line = failed(maker, server, "push")
    assert server.line.is_dead and line.startswith("ERROR: the DVC remote failed: ") and "run again" in line
    server.line.mend()
    assert "pushed" in excise(maker, server, "push")
    assert "up to date" in excise(maker, server, "push")
    listed = json.loads(server.read(maker.hashes()["models/base"]))
    assert all(server.read(file["md5"]) for file in listed)


@pytest.mark.nightly
@ONE_IN_SLOW["s3"]
def test_a_restore_from_a_server_that_died_is_whole_after_the_next(
    maker: Project, clone: Project, server: Server, tmp_path: Path
) -> None:
    excise(maker, server, "push")
    server.line.die_after(300_000)
    line = failed(clone, server, "restore")
    assert server.line.is_dead and line.startswith("ERROR: the DVC remote failed: ")
    assert all_right(tmp_path / "cache") and not [path for path in tmp_path.rglob("*.tmp") if path.is_file()]
    server.line.mend()
    excise(clone, server, "restore")
    assert files(clone) == files(maker) and all_right(tmp_path / "cache")


@pytest.mark.nightly
@EACH
def test_a_new_clone_makes_the_model_from_what_was_pushed(
    maker: Project, clone: Project, server: Server, tmp_path: Path
) -> None:
    excise(maker, server, "push")
    printed = excise(clone, server, "model", "HEAD", str(tmp_path / "out"))
    assert stages_run(printed) == ["ablate"], printed
    assert (tmp_path / "out/edit.json").read_bytes() == (maker.folder / "models/ablated/edit.json").read_bytes()


@ONE_IN_SLOW["ssh"]
def test_a_changed_byte_on_the_server_is_refused_by_name(
    maker: Project, clone: Project, server: Server, tmp_path: Path
) -> None:
    excise(maker, server, "push")
    md5 = maker.hashes()[FILE]
    whole = server.read(md5)
    server.write(md5, flipped(whole))
    try:
        line = failed(clone, server, "restore")
    finally:
        server.write(md5, whole)
    assert f"/files/md5/{md5[:2]}/{md5[2:]}, of {FILE}, than the name stands for" in line
    assert server.url.partition("://")[0] + "://" in line
    assert all_right(tmp_path / "cache") and not (clone.folder / FILE).exists()
    excise(clone, server, "restore")
