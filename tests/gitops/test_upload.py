"""Uploading over real HTTP, to a server on this machine that answers as the Hub does: what reaches it, and when nothing
does."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.gitops.fake_hub import NAME, Hub, fake_hub
from tests.projects import Project, one_line

pytestmark = pytest.mark.slow

TOKEN = "hf_thisIsNoRealTokenAtAll"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with fake_hub() as hub:
        yield hub


@pytest.fixture
def folder(finished: Project, tmp_path: Path) -> Path:
    """An edited model that may be spoiled."""
    shutil.copytree(finished.folder / "models/ablated", tmp_path / "model", copy_function=shutil.copyfile)
    return tmp_path / "model"


def upload(
    finished: Project, folder: Path, hub: Hub, *options: str, name: str = NAME, token: str = TOKEN
) -> CompletedProcess[str]:
    settings = {**hub.environment(folder.parent / "home"), "HF_TOKEN": token}
    return finished.excise("upload", str(folder), name, *options, **settings)


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
