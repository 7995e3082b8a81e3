"""Results are committed to a branch of which nothing is checked out."""

from pathlib import Path

import pytest

from excise.gitops.git import fetch, git, header, push, record
from excise.plumbing.errors import StageError
from tests.projects import Project

FILES = {"dvc.lock": b"lock: 2\n", "report/report.md": b"good\n", "report/pictures/new.svg": b"<svg/>\n"}
PICTURES = "report/pictures"


@pytest.fixture
def origin(tmp_path: Path) -> Project:
    """A bare repository with a branch on which one run is recorded."""
    project = Project(tmp_path / "work")
    (project.folder / "report/pictures").mkdir(parents=True)
    (project.folder / "dvc.lock").write_text("lock: 1\n")
    (project.folder / "params.yaml").write_text("scale: 1\n")
    (project.folder / "report/pictures/old.svg").write_text("<svg/>")
    project.check("git", "init", "--quiet", "--initial-branch", "main")
    project.commit("first")
    project.check("git", "clone", "--quiet", "--bare", ".", str(tmp_path / "origin.git"))
    return Project(tmp_path / "origin.git")


@pytest.fixture
def clone(origin: Project) -> Project:
    origin.check("git", "clone", "--quiet", ".", str(origin.folder.parent / "clone"))
    return Project(origin.folder.parent / "clone")


def files_of(project: Project, commit: str) -> dict[str, str]:
    names = project.check("git", "ls-tree", "-r", "--name-only", commit).split()
    return {name: project.check("git", "show", f"{commit}:{name}") for name in names}


def test_the_commit_holds_the_files_and_what_was_there_before(clone: Project) -> None:
    before = clone.check("git", "status", "--porcelain")
    made = record(clone.folder, "HEAD", FILES, PICTURES, "Record")
    assert files_of(clone, made) == {
        "dvc.lock": "lock: 2\n",
        "params.yaml": "scale: 1\n",
        "report/report.md": "good\n",
        "report/pictures/new.svg": "<svg/>\n",
    }
    assert clone.check("git", "log", "--format=%s", made).split("\n")[:2] == ["Record", "first"]
    assert clone.check("git", "status", "--porcelain") == before
    assert (clone.folder / "dvc.lock").read_text() == "lock: 1\n"


def test_what_is_checked_out_makes_no_difference(clone: Project) -> None:
    (clone.folder / "report/pictures/old.svg").write_text("<svg><g/></svg>")
    parent = clone.commit("another picture")
    clone.check("git", "checkout", "--quiet", "HEAD~1")
    made = record(clone.folder, parent, FILES, PICTURES, "Record")
    assert set(files_of(clone, made)) == {"params.yaml", *FILES}


def test_the_same_results_make_no_commit(clone: Project) -> None:
    made = record(clone.folder, "HEAD", FILES, PICTURES, "Record")
    assert record(clone.folder, made, FILES, PICTURES, "Record") == made


def test_a_commit_is_the_same_one_each_time(clone: Project) -> None:
    """Which `push` needs to see that it was pushed before."""
    old = {"GIT_AUTHOR_DATE": "2001-02-03T04:05:06+0700", "GIT_COMMITTER_DATE": "2001-02-03T04:05:06+0700"}
    done = clone.run("git", "commit", "--quiet", "--allow-empty", "--message", "old", **old)
    assert done.returncode == 0, done.stderr
    made = record(clone.folder, "HEAD", FILES, PICTURES, "Record")
    dates = clone.check("git", "log", "--max-count=2", "--format=%at %ct", made).splitlines()
    assert dates == ["981147906 981147906"] * 2
    assert record(clone.folder, "HEAD", FILES, PICTURES, "Record") == made


def test_links_of_the_branch_lead_nowhere(clone: Project, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "pictures").mkdir(parents=True)
    (outside / "pictures/precious.svg").write_text("precious")
    clone.check("git", "rm", "-r", "--quiet", "report", "dvc.lock")
    (clone.folder / "report").symlink_to(outside)
    (clone.folder / "dvc.lock").symlink_to(outside / "pictures/precious.svg")
    clone.commit("links")
    made = record(clone.folder, "HEAD", FILES, PICTURES, "Record")
    assert files_of(clone, made)["report/report.md"] == "good\n"
    assert files_of(clone, made)["dvc.lock"] == "lock: 2\n"
    assert "120000" not in clone.check("git", "ls-tree", "-r", made)
    assert [path.name for path in outside.rglob("*")] == ["pictures", "precious.svg"]
    assert (outside / "pictures/precious.svg").read_text() == "precious"


def test_what_git_does_to_line_ends_changes_no_byte(clone: Project) -> None:
    clone.check("git", "config", "core.autocrlf", "input")
    made = record(clone.folder, "HEAD", {"dvc.lock": b"a\r\nb\n"}, PICTURES, "Record")
    blob = git(clone.folder, "rev-parse", f"{made}:dvc.lock").strip()
    assert git(clone.folder, "cat-file", "-s", blob).strip() == "5"


def test_a_project_in_a_folder_of_its_repository_is_recorded_there(tmp_path: Path) -> None:
    project = Project(tmp_path / "repository")
    (project.folder / "inner").mkdir(parents=True)
    (project.folder / "inner/dvc.lock").write_text("lock: 1\n")
    project.check("git", "init", "--quiet")
    project.commit("one")
    made = record(project.folder / "inner", "HEAD", FILES, PICTURES, "Record")
    assert set(files_of(project, made)) == {f"inner/{path}" for path in FILES}


def test_who_commits_where_git_knows_nobody(clone: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL", "EMAIL"):
        monkeypatch.delenv(name, raising=False)
    made = record(clone.folder, "HEAD", FILES, PICTURES, "Record")
    assert git(clone.folder, "log", "-1", "--format=%an", made).strip() == "github-actions[bot]"


def test_a_branch_that_stands_is_pushed_to(origin: Project, clone: Project) -> None:
    parent = git(clone.folder, "rev-parse", "HEAD").strip()
    made = record(clone.folder, parent, FILES, PICTURES, "Record")
    for _ in range(2):  # what was pushed before is there
        assert push(clone.folder, made, parent, "main", {})
    assert push(clone.folder, made, made, "main", {})  # nothing was recorded
    assert origin.check("git", "rev-parse", "main").strip() == made


def test_a_branch_that_moved_on_is_left_alone(origin: Project, clone: Project) -> None:
    parent = git(clone.folder, "rev-parse", "HEAD").strip()
    made = record(clone.folder, parent, FILES, PICTURES, "Record")
    (clone.folder / "params.yaml").write_text("scale: 2\n")
    later = clone.commit("later")
    clone.check("git", "push", "--quiet", "origin", "main")
    assert not push(clone.folder, made, parent, "main", {})
    assert not push(clone.folder, parent, parent, "main", {})
    assert not push(clone.folder, made, parent, "ain", {})
    assert origin.check("git", "rev-parse", "main").strip() == later


def test_a_push_that_is_refused_is_one_line(origin: Project, clone: Project) -> None:
    hook = origin.folder / "hooks/pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho 'error: GH006: Protected branch' >&2\nexit 1\n")
    hook.chmod(0o755)
    parent = git(clone.folder, "rev-parse", "HEAD").strip()
    made = record(clone.folder, parent, FILES, PICTURES, "Record")
    with pytest.raises(StageError, match="`git push` failed: remote: error: GH006: Protected branch"):
        push(clone.folder, made, parent, "main", {})


def test_a_commit_that_is_not_here_is_fetched(origin: Project, clone: Project, tmp_path: Path) -> None:
    work = Project(tmp_path / "work")
    (work.folder / "params.yaml").write_text("scale: 3\n")
    other = work.commit("other")
    work.check("git", "push", "--quiet", str(origin.folder), "HEAD:refs/heads/topic")
    fetch(clone.folder, other, {})
    assert git(clone.folder, "cat-file", "-t", other).strip() == "commit"


def test_a_token_is_shown_to_its_server_alone_and_stands_in_no_command(clone: Project) -> None:
    given = header("ghs_secret", "https://github.example")
    asked = ["config", "--get-urlmatch", "http.extraheader"]
    assert "basic" in git(clone.folder, *asked, "https://github.example/team/models", environment=given)
    with pytest.raises(StageError):
        git(clone.folder, *asked, "https://elsewhere.example/team/models", environment=given)
    assert "ghs_secret" not in str(given)
