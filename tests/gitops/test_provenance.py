"""Where a shown report comes from, asked of real git repositories."""

import shutil
import subprocess
from pathlib import Path

import pytest

from excise.gitops.difference import provenance
from tests.projects import environment

PARAMS = """
ablate:
  rules:
    - {layers: 1-4, measurement: 4, scale: 1.0}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project's folder, in no repository yet."""
    path = tmp_path / "project"
    path.mkdir()
    write(path, PARAMS, "lock: 1\n")
    return path


def write(folder: Path, params: str, lock: str) -> None:
    """What a run leaves behind, as far as it matters here."""
    (folder / "params.yaml").write_text(params)
    (folder / "dvc.lock").write_text(lock)


def git(folder: Path, *arguments: str) -> str:
    """What git says in a folder."""
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=environment(), check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def commit(folder: Path) -> str:
    """Commit everything; the commit's name."""
    if not (folder / ".git").exists() and not (folder.parent / ".git").exists():
        git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "one")
    return git(folder, "rev-parse", "HEAD")


def test_outside_a_repository_there_is_no_commit(folder: Path) -> None:
    found = provenance(folder)
    assert (found.commit, found.changed_files, found.previous, found.parameters) == (None, [], None, [])
    assert found.versions["torch"] and found.versions["python"].startswith("3.")


def test_without_git_there_is_no_commit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(folder)
    monkeypatch.setenv("PATH", "")
    assert provenance(folder).commit is None


def test_a_repository_without_a_commit_has_none(folder: Path) -> None:
    git(folder, "init", "--quiet")
    assert provenance(folder).commit is None


def test_a_repository_that_knows_nothing_of_the_project_is_not_its_own(folder: Path) -> None:
    (folder.parent / "other.txt").write_text("x")
    git(folder.parent, "init", "--quiet")
    git(folder.parent, "add", "other.txt")
    git(folder.parent, "commit", "--quiet", "--message", "another project")
    assert provenance(folder).commit is None


def test_a_project_in_a_folder_of_a_repository_has_its_commit(folder: Path) -> None:
    git(folder.parent, "init", "--quiet")
    first = commit(folder)
    write(folder, PARAMS.replace("1.0", "0.5"), "lock: 2\n")
    second = commit(folder)
    found = provenance(folder)
    assert (found.commit, found.previous) == (second, first)
    assert [change.key for change in found.parameters] == ["ablate.rules.0.scale"]


def test_the_first_run_has_no_previous_one(folder: Path) -> None:
    first = commit(folder)
    found = provenance(folder)
    assert (found.commit, found.previous, found.parameters, found.changed_files) == (first, None, [], [])


def test_the_previous_run_is_the_latest_commit_with_another_lock(folder: Path) -> None:
    commit(folder)
    (folder / "README.md").write_text("the same run, and something else")
    previous = commit(folder)
    write(folder, PARAMS.replace("1.0", "0.5"), "lock: 2\n")
    commit(folder)
    (folder / "README.md").write_text("the current run, and something else")
    current = commit(folder)
    found = provenance(folder)
    assert (found.commit, found.previous) == (current, previous)
    (change,) = found.parameters
    assert (change.key, change.before, change.after) == ("ablate.rules.0.scale", "1.0", "0.5")


def test_a_run_that_is_not_committed_comes_after_the_commit(folder: Path) -> None:
    first = commit(folder)
    write(folder, PARAMS + "gates: []\n", "lock: 2\n")
    (folder / "new file.txt").write_text("x")
    found = provenance(folder)
    assert (found.commit, found.previous) == (first, first)
    assert found.changed_files == ["dvc.lock", "new file.txt", "params.yaml"]
    before = {change.key: change for change in found.parameters}
    assert before["gates.0.metric"].before == '"refusal.organism_harmful.refusal_rate"'
    assert before["gates.0.metric"].after is None and before["gates"].before is None
    assert before["gates"].after == "[]"


def test_defaults_are_no_change_and_where_it_runs_is_none(folder: Path) -> None:
    commit(folder)
    write(folder, "model: {device: cpu}\n" + PARAMS.replace("scale: 1.0", "scale: 1"), "lock: 2\n")
    assert provenance(folder).parameters == []


def test_parameters_of_another_version_are_compared_as_they_are_written(folder: Path) -> None:
    write(folder, "of_old: {alpha: 1, beta: [1, 2]}\n" + PARAMS, "lock: 1\n")
    commit(folder)
    write(folder, PARAMS, "lock: 2\n")
    assert [(change.key, change.before, change.after) for change in provenance(folder).parameters] == [
        ("of_old.alpha", "1", None),
        ("of_old.beta", "[1, 2]", None),
    ]


def test_parameters_that_cannot_be_read_are_not_compared(folder: Path) -> None:
    (folder / "params.yaml").write_bytes(b"\xff: [")
    commit(folder)
    write(folder, PARAMS, "lock: 2\n")
    found = provenance(folder)
    assert found.previous == found.commit and found.parameters == []


def test_asking_leaves_the_repository_as_it_is(folder: Path) -> None:
    commit(folder)
    before = {path: path.read_bytes() for path in (folder / ".git").rglob("*") if path.is_file()}
    shutil.copy(folder / "params.yaml", folder / "copy.yaml")
    (folder / "params.yaml").touch()
    provenance(folder)
    assert {path: path.read_bytes() for path in (folder / ".git").rglob("*") if path.is_file()} == before


def test_names_of_files_cannot_be_taken_for_anything_else(folder: Path) -> None:
    commit(folder)
    for name in ("--help", "a\nb", "é", "$(touch x)"):
        (folder / name).write_text("x")
    assert provenance(folder).changed_files == sorted(["--help", "a\nb", "é", "$(touch x)"])
