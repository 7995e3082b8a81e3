"""What is asked of git, in real repositories."""

from pathlib import Path

import pytest

from excise.gitops.git import answer, commit_of, file_of, git
from excise.plumbing.errors import StageError
from tests.projects import Project


@pytest.fixture
def repository(tmp_path: Path) -> Project:
    """Two commits of one file, the first one tagged."""
    project = Project(tmp_path / "project")
    project.folder.mkdir()
    project.check("git", "init", "--quiet", "--initial-branch", "main")
    (project.folder / "params.yaml").write_text("one")
    project.commit("one")
    project.check("git", "tag", "model-1")
    (project.folder / "params.yaml").write_text("two")
    project.commit("two")
    return project


def test_a_commit_is_found_by_any_of_its_names(repository: Project) -> None:
    head = git(repository.folder, "rev-parse", "HEAD").strip()
    assert {commit_of(repository.folder, name) for name in (head, head[:7], "main", "HEAD")} == {head}
    assert commit_of(repository.folder, "model-1") == commit_of(repository.folder, "HEAD~1") != head


@pytest.mark.parametrize("name", ["nobody", "", "--all", "main:params.yaml", "main..model-1", "0" * 40, "a b"])
def test_what_is_no_commit_is_one_line(repository: Project, name: str) -> None:
    with pytest.raises(StageError, match="is no commit of this repository"):
        commit_of(repository.folder, name)


def test_a_file_is_read_as_it_was(repository: Project) -> None:
    assert file_of(repository.folder, "HEAD~1", "params.yaml") == "one"
    assert file_of(repository.folder, "HEAD", "params.yaml") == "two"
    assert file_of(repository.folder, "HEAD", "dvc.lock") is None


def test_why_git_failed_is_one_line(repository: Project) -> None:
    with pytest.raises(StageError, match=r"^`git checkout` failed: .*nowhere.*") as error:
        git(repository.folder, "checkout", "nowhere")
    assert "\n" not in str(error.value)
    assert answer(repository.folder, "checkout", "nowhere") is None
