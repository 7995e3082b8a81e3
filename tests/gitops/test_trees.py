"""A past commit's working tree: what it holds, that nothing of it stays, and what `dvc status` says of it."""

import json
from pathlib import Path

import pytest

from excise.gitops.git import git
from excise.gitops.trees import WITHIN, changed_since, commit_tree
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


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([{"changed deps": {"data": "deleted"}}, {"changed outs": {"models/base": "not in cache"}}], None),
        ([{"changed deps": {"data": "deleted", "params.yaml": "modified"}}], "params.yaml"),
        ([{"changed outs": {"gates.json": "modified"}}], "gates.json"),
        (["changed command"], "command of ablate"),
        (["always changed"], None),
    ],
)
def test_what_is_not_there_yet_is_no_change_and_all_else_is(changes: list[object], expected: str | None) -> None:
    assert changed_since("WARNING: of DVC's\n" + json.dumps({"ablate": changes})) == expected
