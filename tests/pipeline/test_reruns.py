"""A change of params.yaml reruns the stages of its section and what follows, and nothing else."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.projects import Project, environment, stages_run

EDITED = ["answer@ablated", "evaluate@ablated", "report"]
ANSWER = ["answer@base", "answer@ablated", "evaluate@base", "evaluate@ablated", "report"]
PREPARE = ["params", "prepare", "measure", "directions", "simulate", "ablate", "diagnose", *ANSWER]
MEASURE = ["params", "measure", "directions", "simulate", "ablate", "diagnose", *EDITED]
ABLATE = ["params", "simulate", "ablate", *EDITED]
EVALUATE = ["params", *ANSWER]
REPORT = ["params", "report"]

CHANGES = {
    "model.device": ("device: auto ", "device: cpu  ", ["params"]),
    "model.dtype": ("dtype: auto   ", "dtype: float32", ["params", "prepare"]),
    "organism.seed": ("seed: 0\n", "seed: 1\n", ["params", "organism", *PREPARE[1:]]),
    "prompts.limit": ("limit: null               # prompts", "limit: 40  # prompts", PREPARE),
    "measure.position": ("position: -1", "position: -2", MEASURE),
    "measure.offload": ("offload: auto", "offload: on  ", ["params"]),
    "ablate.rules": ("scale: 1.4", "scale: 0.55", ABLATE),
    "ablate.router_bias": ("router_bias: null ", "router_bias: {strength: 0.35} ", ABLATE),
    "evaluate.limit": ("limit: 16", "limit: 8", EVALUATE),
    "gates": ("at_most: 0.15", "at_most: 0.5", REPORT),
}
"""A key of each section: what it reads, what it is made, and which stages run then. float32 is what the organism's
config says: prepare runs, finds that the base is what it was, and nothing follows. No other test uses these values:
DVC would find the outcome in the shared cache and run nothing."""

MISTAKES = {
    "model.device": ("device: auto", "device: gpu"),
    "organism.seed": ("seed: 0\n", "seed: zero\n"),
    "prompts.harmful.split": ("split: harmful_train", "split: harmful"),
    "measure.postion": ("position: -1", "postion: -1"),
    "ablate.rules.0.layers": ("layers: 2-3", "layers: 4-1"),
    "evaluate.limit": ("limit: 16", "limit: 0"),
    "gates.0.at_most": ("at_most: 0.15", "at_most: much"),
}


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file that stages made, with what tells whether it was touched."""
    made = ("answers", "artifacts", "models", "results", "report", "metrics.json", "gates.json")
    paths = [path for name in made for path in [folder / name, *(folder / name).rglob("*")] if path.is_file()]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


LONG = dict.fromkeys(("model.dtype", "ablate.rules", "gates", "measure.offload"), pytest.mark.slow)
LONG |= dict.fromkeys(
    ("organism.seed", "prompts.limit", "measure.position", "ablate.router_bias", "evaluate.limit"), pytest.mark.nightly
)
"""After these many stages run; of the longest the first stages are held by `test_staleness.py`, too."""


@pytest.mark.parametrize("key", [pytest.param(key, marks=LONG.get(key, ())) for key in CHANGES])
def test_a_changed_key_runs_exactly_the_stages_that_it_touches(project: Project, key: str) -> None:
    old, new, expected = CHANGES[key]
    project.replace(old, new)
    assert project.repro() == expected
    assert project.repro() == []


@pytest.mark.parametrize("key", MISTAKES)
def test_a_mistake_runs_nothing_and_loses_nothing(project: Project, key: str) -> None:
    project.replace(*MISTAKES[key])
    before = contents(project.folder)
    done = project.run("dvc", "repro")
    assert done.returncode != 0
    assert stages_run(done.stdout) == ["params"]
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("ERROR: params.yaml: "))
    assert key in error
    assert "Traceback" not in done.stderr
    assert contents(project.folder) == before


def test_nothing_to_do_runs_nothing_and_is_quick(project: Project) -> None:
    assert project.repro() == []
    began = time.monotonic()
    assert project.repro() == []
    assert time.monotonic() - began < 6  # the promise is 3 s on a machine that does nothing else


def test_a_changed_comment_runs_the_params_stage_alone(project: Project) -> None:
    project.replace("# What is removed from which model", "# Which direction is removed from which model")
    assert project.repro() == ["params"]


@pytest.mark.nightly
def test_a_value_changed_while_a_stage_runs_is_seen_by_the_next_run(project: Project) -> None:
    project.replace("scale: 1.4", "scale: 0.75")
    with subprocess.Popen(
        ["dvc", "repro"], cwd=project.folder, env=environment(), stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith("Running stage 'ablate'"):
                project.replace("scale: 0.75", "scale: 0.25")
    assert running.returncode == 0
    assert project.repro() == ABLATE
    assert '"scale": 0.25' in (project.folder / "models/ablated/edit.json").read_text()


@pytest.mark.slow
def test_a_changed_stage_file_runs_that_stage(project: Project) -> None:
    with open(project.folder / "stages/report.py", "a") as file:
        file.write("# a comment\n")
    assert project.repro() == ["report"]


def test_a_model_and_its_copy_in_the_cache_take_the_disk_once(finished: Project) -> None:
    for model in ("base", "ablated"):
        (weights,) = (finished.folder / "models" / model).glob("*.safetensors")
        assert os.stat(weights).st_nlink >= 2
