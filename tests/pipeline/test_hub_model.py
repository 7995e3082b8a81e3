"""A base model of the Hub: the same edit as of the same model anywhere else, on every machine that can fetch it."""

import json
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.hub import TOKEN, Hub
from tests.projects import Project, one_line

NAME = "some/model"
WEIGHTS = "models/ablated/model.safetensors"


@pytest.fixture
def hub_model(local_hub: Hub, local_model: tuple[Project, Path]) -> tuple[Project, Path]:
    """A project whose base is in a repository of the Hub, pinned by `make pin`, and a folder for the Hub's cache."""
    project, folder = local_model
    local_hub.add_folder(NAME, folder)
    home = project.folder.parent / "home"
    assert project.excise("pin", NAME, **local_hub.environment(home, TOKEN)).returncode == 0
    assert run(project, local_hub, home, "params").returncode == 0
    return project, home


def run(project: Project, hub: Hub, home: Path, stage: str) -> CompletedProcess[str]:
    done = project.run("python", "-m", f"stages.{stage}", **hub.environment(home, TOKEN))
    assert TOKEN not in done.stdout + done.stderr
    return done


def without_token(*folders: Path) -> None:
    for folder in folders:
        for path in folder.rglob("*"):
            assert path.is_symlink() or not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_it_is_edited_as_the_same_model_elsewhere_is(
    finished: Project, local_hub: Hub, hub_model: tuple[Project, Path], tmp_path: Path
) -> None:
    """The finished project's organism is that model."""
    project, home = hub_model
    (project.folder / "artifacts/model.json").unlink()
    for made in ("models/ablated", "models/base"):
        shutil.rmtree(project.folder / made)
    assert run(project, local_hub, home, "organism").returncode == 0
    for stage in ("prepare", "measure", "directions", "ablate"):
        done = run(project, local_hub, home, stage)
        assert (done.returncode, done.stderr) == (0, ""), stage
        local_hub.asked.clear()
        local_hub.broken = 500  # everything is there by now
    assert not local_hub.asked
    assert (project.folder / WEIGHTS).read_bytes() == (finished.folder / WEIGHTS).read_bytes()
    assert [path.name for path in (project.folder / "models/base").iterdir()] == ["README.md"]
    revision = json.loads((project.folder / "artifacts/model.json").read_text())["revision"]
    card = (project.folder / "models/ablated/README.md").read_text()
    assert f'---\nbase_model: {NAME}\nbase_model_revision: "{revision}"\nlibrary_name' in card
    without_token(*(project.folder / made for made in ("artifacts", "models", ".excise")), home)

    shutil.rmtree(project.folder / "models/ablated")
    local_hub.broken = None
    assert run(project, local_hub, tmp_path / "another machine", "ablate").returncode == 0
    assert (project.folder / WEIGHTS).read_bytes() == (finished.folder / WEIGHTS).read_bytes()


@pytest.mark.slow
def test_what_goes_wrong_on_the_way_is_one_line_and_the_next_run_goes_on(
    local_hub: Hub, hub_model: tuple[Project, Path]
) -> None:
    """Also where the library would warn, with addresses in it: a connection breaks, and then the bytes are wrong."""
    project, home = hub_model
    manifest = project.folder / "artifacts/model.json"
    before = manifest.read_bytes()
    local_hub.cut_after, local_hub.cuts = 100_000, 1
    local_hub.spoiled.add("model.safetensors")
    line = one_line(run(project, local_hub, home, "prepare"))
    assert "model.safetensors differed from the Hub, and was removed; run again" in line
    assert local_hub.cuts == 0 and manifest.read_bytes() == before
    local_hub.spoiled.clear()
    assert run(project, local_hub, home, "prepare").returncode == 0
    assert json.loads(manifest.read_text())["id"] == NAME


@pytest.mark.nightly
def test_every_stage_runs_and_a_past_model_comes_back(
    local_hub: Hub, hub_model: tuple[Project, Path], tmp_path: Path
) -> None:
    project, home = hub_model
    project.check("dvc", "config", "--local", "cache.dir", str(tmp_path / "cache"))
    done = project.run("dvc", "repro", **local_hub.environment(home, TOKEN))
    assert done.returncode == 0, done.stdout + done.stderr
    assert TOKEN not in done.stdout + done.stderr
    commit = project.commit("a model of the Hub")
    edited = (project.folder / WEIGHTS).read_bytes()
    shutil.rmtree(tmp_path / "cache")
    project.check("git", "clean", "-qfdx", "models", "artifacts", "results")
    again = project.run(
        *("python", "-m", "excise", "model", commit, str(tmp_path / "out")),
        **local_hub.environment(tmp_path / "elsewhere", TOKEN),
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert (tmp_path / "out/model.safetensors").read_bytes() == edited
