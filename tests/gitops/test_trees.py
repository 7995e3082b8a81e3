"""A past commit: what its working tree holds, that nothing of it stays, and what DVC knows of it without one."""

import shutil
from pathlib import Path

import pytest

from excise.gitops.git import git
from excise.gitops.trees import WITHIN, commit_tree
from excise.plumbing.private.dvc import at_commit, changed
from excise.plumbing.private.dvc_remote import read
from tests.projects import Project


@pytest.fixture
def repository(tmp_path: Path) -> Project:
    """Two commits of one file, in a repository of DVC's."""
    project = Project(tmp_path / "project")
    project.folder.mkdir()
    project.check("git", "init", "--quiet", "--initial-branch", "main")
    project.check("dvc", "init", "--quiet")
    for text in ("one", "two"):
        (project.folder / "params.yaml").write_text(text)
        project.commit(text)
    return project


def is_alone(folder: Path) -> bool:
    """Whether no other working tree of its repository is left."""
    places = [path.name for path in (folder / WITHIN).iterdir()]
    return git(folder, "worktree", "list").count("\n") == 1 and places == ["lock"]


def test_a_tree_holds_its_commit_and_is_gone_afterwards(repository: Project) -> None:
    with commit_tree(repository.folder, "HEAD~1") as tree:
        assert (tree.folder / "params.yaml").read_text() == "one"
        (tree.folder / "left behind").write_text("x")
    assert not tree.folder.exists() and is_alone(repository.folder)
    assert (repository.folder / "params.yaml").read_text() == "two"


def test_a_tree_is_removed_when_its_block_fails(repository: Project) -> None:
    with pytest.raises(RuntimeError), commit_tree(repository.folder, "HEAD"):
        raise RuntimeError
    assert is_alone(repository.folder)


def test_a_project_in_a_folder_of_its_repository_is_found_in_the_tree(tmp_path: Path) -> None:
    project = Project(tmp_path / "repository")
    inner = Project(project.folder / "inner")
    inner.folder.mkdir(parents=True)
    (inner.folder / "params.yaml").write_text("one")
    project.check("git", "init", "--quiet")
    inner.check("dvc", "init", "--quiet", "--subdir")
    project.commit("one")
    with commit_tree(inner.folder, "HEAD") as tree:
        assert tree.folder.name == "inner" and (tree.folder / "params.yaml").read_text() == "one"
    assert not tree.folder.exists() and is_alone(inner.folder)


@pytest.fixture
def recorded(repository: Project) -> Project:
    """The same with a stage that ran, which writes one file into the cache and one into git."""
    (repository.folder / "params.yaml").unlink()
    (repository.folder / "source").write_text("two")
    (repository.folder / "dvc.yaml").write_text(
        "stages:\n  copy:\n    cmd: cp source kept && cp source shown\n    deps: [source]\n"
        "    outs: [kept, shown: {cache: false}]\n"
    )
    repository.repro()
    repository.commit("recorded")
    return repository


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("source", "two", "three", "source"),
        ("shown", "two", "three", "shown"),
        ("dvc.yaml", "cp source kept &&", "cp -f source kept &&", "command of copy"),
        ("dvc.lock", "schema", "schema", None),
    ],
)
def test_what_a_commit_changed_without_running_it_is_named(
    recorded: Project, file: str, old: str, new: str, expected: str | None
) -> None:
    """What the folder holds besides does not count, nor that the cached file is in no commit."""
    recorded.replace(old, new, file)
    recorded.check("git", "commit", "--allow-empty", "--all", "--message", "not run")
    (recorded.folder / "source").write_text("four")
    with at_commit(recorded.folder, "HEAD", with_remote=False) as repo:
        assert changed(repo, "copy") == expected


def test_what_a_commit_recorded_is_read_with_the_settings_of_today(recorded: Project, tmp_path: Path) -> None:
    (recorded.folder / ".dvc/cache").rename(tmp_path / "cache")
    recorded.check("dvc", "config", "--local", "cache.dir", str(tmp_path / "cache"))
    (recorded.folder / "kept").unlink()
    assert read(recorded.folder, "HEAD", "kept") == b"two"
    assert read(recorded.folder, "HEAD", "shown") == b"two"
    assert read(recorded.folder, "HEAD", "missing") is None
    shutil.rmtree(tmp_path / "cache")
    assert read(recorded.folder, "HEAD", "kept") is None
    recorded.check("dvc", "remote", "add", "--default", "store", "ssh://nobody@localhost/store")
    assert read(recorded.folder, "HEAD", "kept") is None
