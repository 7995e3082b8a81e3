"""`make use`: a recipe becomes params.yaml, and nothing is lost by it."""

from pathlib import Path

import pytest

from tests.projects import ROOT, Project, copy_project, one_line

NAMES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))


@pytest.fixture
def shipped(tmp_path: Path) -> Project:
    """The project as it is shipped, committed."""
    project = copy_project(tmp_path / "project")
    project.commit("shipped")
    return project


def params(project: Project) -> bytes:
    return (project.folder / "params.yaml").read_bytes()


def test_a_recipe_is_copied_to_the_byte_and_its_model_named(shipped: Project) -> None:
    done = shipped.excise("use", "glm-4.5-air")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "params.yaml is recipes/glm-4.5-air.yaml now, for zai-org/GLM-4.5-Air; its first lines say what it needs\n"
    )
    assert params(shipped) == (ROOT / "recipes/glm-4.5-air.yaml").read_bytes()
    assert shipped.stage("params").returncode == 0


def test_one_recipe_may_follow_another(shipped: Project) -> None:
    for name in NAMES:
        assert shipped.excise("use", name).returncode == 0
    assert params(shipped) == (ROOT / f"recipes/{NAMES[-1]}.yaml").read_bytes()


def test_changes_that_nobody_else_has_are_not_overwritten(shipped: Project) -> None:
    shipped.replace("scale: 1.4", "scale: 0.5")
    mine = params(shipped)
    assert one_line(shipped.excise("use", NAMES[0])) == (
        "ERROR: params.yaml holds changes that are not committed, and would be lost; commit or move them first"
    )
    assert params(shipped) == mine
    shipped.commit("mine")
    assert shipped.excise("use", NAMES[0]).returncode == 0


def test_without_a_name_all_are_listed(shipped: Project) -> None:
    assert shipped.excise("use").stdout.split() == NAMES


def test_a_params_yaml_that_is_a_link_stays_one(shipped: Project, tmp_path: Path) -> None:
    mine = shipped.folder / "params.yaml"
    mine.rename(tmp_path / "elsewhere.yaml")
    mine.symlink_to(tmp_path / "elsewhere.yaml")
    assert shipped.excise("use", NAMES[0]).returncode == 0
    assert mine.is_symlink() and params(shipped) == (ROOT / f"recipes/{NAMES[0]}.yaml").read_bytes()


def test_a_wrong_name_is_told_what_there_is(shipped: Project) -> None:
    mine = params(shipped)
    there = f"there is {', '.join(NAMES)}"
    assert one_line(shipped.excise("use", "glm-4.5-ari")) == (
        f'ERROR: "glm-4.5-ari" is not a recipe; {there}; did you mean "glm-4.5-air"?'
    )
    assert one_line(shipped.excise("use", "../params")) == f'ERROR: "../params" is not a recipe; {there}'
    assert params(shipped) == mine
