"""A model larger than the memory that a stage may take is measured, edited and loaded again, layer by layer."""

import hashlib
import json
import re
import resource
import subprocess
from pathlib import Path

import pytest

from benchmarks.air import Shape, write_checkpoint
from tests.projects import Project, copy_project, environment

LIMIT = 3 << 29
"""Of RLIMIT_DATA: 1.5 GiB, of which libraries take half."""
SHAPE = Shape(layers=9, hidden=1024, heads=8, experts=64, expert_size=512, shard_bytes=1 << 26)
"""1.8 GiB, of which a layer has 0.2."""

MEASURED = ("activations.safetensors", "directions.safetensors", "directions.json", "expert_use.json")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose base is such a model, prepared."""
    folder: Path = tmp_path_factory.mktemp("larger")
    (folder / "model").mkdir()
    write_checkpoint(folder / "model", SHAPE)
    made = copy_project(folder / "project")
    made.replace("source: organism          #", f"source: {folder / 'model'}  #")
    made.replace("limit: null               # prompts", "limit: 40  # prompts")
    for stage in ("params", "prepare"):
        assert made.stage(stage).returncode == 0
    return made


def limited(project: Project, *command: str) -> subprocess.CompletedProcess[str]:
    """One stage or command that may not take more memory."""
    return subprocess.run(
        ["python", "-m", *command],
        cwd=project.folder,
        env=environment(OMP_NUM_THREADS="2"),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)),
    )


def offload(project: Project, how: str) -> None:
    """Whether models are read layer by layer."""
    path = project.folder / "params.yaml"
    path.write_text(re.sub(r"offload: \w+ *(?= #|$)", f"offload: {how}", path.read_text(), flags=re.MULTILINE))
    assert project.stage("params").returncode == 0


def measured(project: Project) -> list[str]:
    assert project.stage("directions").returncode == 0
    return [hashlib.sha256((project.folder / "artifacts" / name).read_bytes()).hexdigest() for name in MEASURED]


@pytest.mark.nightly
def test_it_is_measured_as_with_memory_enough_edited_and_loaded(project: Project) -> None:
    offload(project, "auto")
    size = sum(path.stat().st_size for path in (project.folder.parent / "model").glob("*.safetensors"))
    assert size > LIMIT
    done = limited(project, "stages.measure")
    assert done.returncode == 0, done.stderr
    assert "its limit RLIMIT_DATA has" in done.stderr and "reading one layer at a time" in done.stderr
    layer_by_layer = measured(project)
    for command in (["excise", "plan"], ["stages.ablate"]):
        done = limited(project, *command)
        assert done.returncode == 0, done.stderr

    offload(project, "off ")
    done = project.run("python", "-m", "stages.measure", OMP_NUM_THREADS="2")
    assert done.returncode == 0 and "reading one layer at a time" not in done.stderr, done.stderr
    assert measured(project) == layer_by_layer


@pytest.mark.nightly
def test_it_is_simulated_and_diagnosed_with_as_little_memory(project: Project) -> None:
    offload(project, "auto")
    for stage in ("measure", "directions", "simulate", "diagnose"):
        done = limited(project, f"stages.{stage}")
        assert done.returncode == 0, done.stderr
    simulation, diagnosis = (
        json.loads((project.folder / f"artifacts/{name}.json").read_text()) for name in ("simulation", "diagnosis")
    )
    assert simulation["read"] == "prompts" and simulation["current"]["kl"] > 0
    # A random model refuses nothing, but this is known only when all of the first round was asked.
    assert "the base refuses" in diagnosis["reason"] and diagnosis["passes"] > SHAPE.layers


@pytest.mark.nightly
def test_what_needs_the_whole_model_says_so_in_one_line(project: Project) -> None:
    offload(project, "auto")
    for stage in ("measure", "directions"):
        assert project.stage(stage).returncode == 0
    offload(project, "off ")
    done = limited(project, "stages.diagnose")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith("ERROR: ") and "its limit RLIMIT_DATA has 1.5 GiB; use a larger machine" in line
