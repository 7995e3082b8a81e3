"""A machine that runs what others pushed has a cache, a remote, both, or neither."""

import shutil
from pathlib import Path

import pytest

from tests.projects import Project, one_line


@pytest.fixture
def clone(finished: Project, tmp_path: Path) -> Project:
    """A new clone, which has nothing that stages made."""
    finished.check("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    return Project(tmp_path / "clone")


def store(clone: Project, action: str, **settings: str) -> str:
    done = clone.run("python", "-m", "stages.store", action, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_with_the_shared_cache_alone_nothing_runs_again(finished: Project, clone: Project) -> None:
    said = store(clone, "restore", CACHE=str(finished.folder.parent / "cache"))
    assert "No DVC remote is set" in said
    assert "Running stage" not in store(clone, "repro")
    assert not clone.check("git", "status", "--porcelain")
    assert "No DVC remote is set" in store(clone, "push")


def test_what_a_killed_run_left_does_not_stop_the_next(finished: Project, clone: Project, tmp_path: Path) -> None:
    clone.check("dvc", "remote", "add", "--local", "--default", "storage", str(tmp_path / "storage"))
    store(clone, "restore", CACHE=str(finished.folder.parent / "cache"))
    store(clone, "push")
    shutil.rmtree(clone.folder / "models/base")
    (clone.folder / "models/base").mkdir()
    (clone.folder / "models/base/half").write_text("written, and in no cache yet")
    store(clone, "restore")
    assert "Running stage" not in store(clone, "repro")


def test_a_shared_cache_is_made_and_is_the_groups(clone: Project, tmp_path: Path) -> None:
    store(clone, "restore", CACHE=str(tmp_path / "new/cache"))
    assert clone.check("dvc", "cache", "dir").strip() == str(tmp_path / "new/cache")
    assert clone.check("dvc", "config", "cache.shared").strip() == "group"
    assert not clone.check("git", "status", "--porcelain")


def test_a_cache_that_would_be_another_in_each_clone_is_refused(clone: Project) -> None:
    assert "must be an absolute path" in one_line(clone.run("python", "-m", "stages.store", "restore", CACHE="cache"))


def test_a_remote_that_cannot_be_asked_fails_the_job(clone: Project, tmp_path: Path) -> None:
    clone.check("dvc", "remote", "add", "--local", "--default", "storage", str(tmp_path / "file/storage"))
    (tmp_path / "file").write_text("in the way")
    done = clone.run("python", "-m", "stages.store", "push")
    assert done.returncode != 0 and "`dvc push` failed" in done.stderr
