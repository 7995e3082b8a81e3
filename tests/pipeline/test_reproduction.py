"""Any commit gives the same bytes again."""

import shutil
from pathlib import Path

import pytest

from tests.projects import Project, copy_project, quicken


@pytest.mark.slow
def test_two_fresh_clones_give_the_same_bytes(finished: Project, tmp_path: Path) -> None:
    other = copy_project(tmp_path / "somewhere/else")
    quicken(other)
    other.repro()
    hashes = other.hashes()
    assert len(hashes) == 34
    assert hashes == finished.hashes()


@pytest.mark.nightly
def test_an_older_commit_gives_its_model_back_from_the_cache(project: Project) -> None:
    first = model_bytes(project)
    project.replace("scale: 1.4", "scale: 0.5")
    project.repro()
    project.commit("half")
    assert model_bytes(project) != first

    project.check("git", "checkout", "--quiet", "HEAD~1")
    project.check("dvc", "checkout")
    assert model_bytes(project) == first
    assert project.repro() == []


@pytest.mark.nightly
def test_an_older_commit_gives_its_model_back_without_the_cache(project: Project, tmp_path: Path) -> None:
    first, lock = model_bytes(project), (project.folder / "dvc.lock").read_text()
    project.replace("scale: 1.4", "scale: 0.5")
    project.repro()
    project.commit("half")

    project.check("dvc", "config", "--local", "cache.dir", str(tmp_path / "empty"))
    for made in ("artifacts", "models", "results", ".dvc/tmp"):
        shutil.rmtree(project.folder / made)
    project.check("git", "checkout", "--quiet", "HEAD~1")
    assert "ablate" in project.repro()
    assert model_bytes(project) == first
    assert (project.folder / "dvc.lock").read_text() == lock


@pytest.mark.nightly
def test_a_change_of_prompts_keeps_a_model_that_was_trained_elsewhere(project: Project) -> None:
    before = (project.folder / "models/base/model.safetensors").read_bytes()
    project.check("dvc", "unprotect", "models/base")
    # As another machine would have rounded it: one bit of the last weight.
    other = before[:-4] + bytes([before[-4] ^ 1]) + before[-3:]
    (project.folder / "models/base/model.safetensors").write_bytes(other)
    project.check("dvc", "commit", "--force", "prepare")
    project.replace("limit: null               # prompts", "limit: 40  # prompts")
    project.repro()
    assert (project.folder / "models/base/model.safetensors").read_bytes() == other


def model_bytes(project: Project) -> dict[str, bytes]:
    """Every file of the edited model."""
    folder = project.folder / "models/ablated"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
