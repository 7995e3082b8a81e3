"""What tests share: one quick project after its first run, copies of it, and copies with a local base model.

Its organism is small and badly trained: these tests ask what runs and what is written, not how good it is. The
defaults' quality is asked in `pipeline/test_defaults.py`.
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.hub import Hub, serve
from tests.projects import FirstRun, Project, copy_project, first_run, quicken


@pytest.hookimpl(trylast=True)  # of those only that will run
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One file that needs the finished project comes first and the others last: while one worker makes it, the other
    does not wait for it."""
    needing = list(dict.fromkeys(item.path for item in items if "finished" in getattr(item, "fixturenames", ())))
    items.sort(key=lambda item: 0 if item.path in needing[:1] else 1 + (item.path in needing))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Project:
    """A quick project after its first `dvc repro`. Not to be changed: take a `project`.

    Of workers that test side by side the first one makes it; each has a copy with a cache of its own, whose files and
    those of the workspace are the same on disk, as in what was copied.
    """
    own = tmp_path_factory.mktemp("finished")
    if worker_id == "master":
        return finish(own)
    shared = tmp_path_factory.getbasetemp().parent / "finished"
    with FileLock(shared.with_suffix(".lock")):
        if not (shared / "is-whole").exists():
            shutil.rmtree(shared, ignore_errors=True)
            finish(shared)
            (shared / "is-whole").touch()
    subprocess.run(["cp", "--archive", f"{shared}/.", str(own)], check=True)
    project = Project(own / "project")
    project.check("dvc", "config", "--local", "cache.dir", str(own / "cache"))
    return project


def finish(folder: Path) -> Project:
    """The first run of a quick project in a folder, with its cache beside it."""
    project = copy_project(folder / "project")
    quicken(project)
    project.check("dvc", "config", "--local", "cache.dir", str(folder / "cache"))
    assert project.repro() == [
        "params",
        "organism",
        "prepare",
        "measure",
        "directions",
        "simulate",
        "ablate",
        "diagnose",
        "answer@base",
        "answer@ablated",
        "evaluate@base",
        "evaluate@ablated",
        "report",
    ]
    project.commit("first")
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished quick project, to be changed; it shares the cache and nothing else."""
    shutil.copytree(finished.folder, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project")


@pytest.fixture
def local_model(finished: Project, project: Project, tmp_path: Path) -> tuple[Project, Path]:
    """A project whose base model is a local folder, and that folder, which may be spoiled."""
    folder = tmp_path / "model"
    shutil.copytree(finished.folder / "models/base", folder, copy_function=shutil.copyfile)
    (folder / "organism.json").unlink()
    project.replace("source: organism          #", f"source: {folder}  #")
    assert project.stage("params").returncode == 0
    return project, folder


@pytest.fixture
def local_hub() -> Iterator[Hub]:
    """A Hub on this machine, with nothing in it."""
    with serve() as hub:
        yield hub


@pytest.fixture(scope="session")
def at_defaults(tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    """The project as it is shipped, after its first run, whose time counts: for slow tests that run alone. Not to be
    changed: take `defaults`."""
    return first_run(copy_project(tmp_path_factory.mktemp("defaults") / "project"))


@pytest.fixture
def defaults(at_defaults: FirstRun, tmp_path: Path) -> Project:
    """A copy of the shipped project after its first run, to be changed."""
    shutil.copytree(at_defaults.project.folder, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project")
