"""One experiment runs on one machine, and what many machines found meets at the origin."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from excise.gitops.experiments.runs import head, in_order, push_experiment, reference
from excise.plumbing.errors import StageError
from schemas.experiments import load
from tests.experiments.clusters import FILE, clone, engines, pushed, results_of, with_origin
from tests.projects import ROOT, Project, environment, one_line, stages_run

ONE_GATE = "groups: [{name: gate, set: {gates.0.at_most: 0.2}, experiments: [{name: first}]}]\n"
ASKED = ["answer@base", "answer@ablated", "evaluate@ablated"]
"""What follows the edit for a table's row."""


def line(project: Project, commit: str, name: str) -> str:
    """The row that an experiment's own metrics make."""
    found = results_of(project, f"refs/exps/{commit[:2]}/{commit[2:]}/mine-other-{name}")
    values = [found["metrics"]["refusal"]["organism_harmful"]["refusal_rate"], found["drift"]["first_token_kl"]]
    return f"| {name} | {' | '.join(f'{value:.4f}' for value in values)} | `dvc exp run -S organism.seed=79 "


@pytest.mark.nightly
def test_the_script_for_slurm_runs_every_experiment_on_nodes_that_share_a_cache(
    project: Project, tmp_path: Path
) -> None:
    commit = with_origin(project, tmp_path)
    settings = engines(tmp_path / "engines")
    submitted = project.run("bash", "experiments/cluster/slurm.sh", "mine.yaml", "--partition=gpu", **settings)
    assert submitted.returncode == 0, submitted.stderr
    assert (tmp_path / "engines/sbatch.log").read_text().splitlines() == [
        f"--parsable --array=1-1 --partition=gpu experiments/cluster/slurm.sh mine.yaml {commit}",
        "--parsable --array=2-3 --dependency=afterany:1 --partition=gpu "
        f"experiments/cluster/slurm.sh mine.yaml {commit}",
    ]
    first, strict, broken = (
        (project.folder / f".excise/cluster/{task}.log").read_text() for task in ("1-1", "2-2", "2-3")
    )
    made = ["organism", "prepare", "measure", "directions", "ablate"]
    assert stages_run(first) == ["params", *made, *ASKED], first
    # DVC's cache of runs has all but a trained model: that it is not trained again is the first one's doing.
    assert stages_run(strict) == ["params"], strict
    assert broken.splitlines()[-1].startswith("ERROR: mine-other-broken: params.yaml: ablate.rules.0.layers: "), broken
    assert [path.name for path in (project.folder / ".excise/cluster").iterdir() if path.is_dir()] == []
    assert project.check("git", "status", "--porcelain") == ""

    laptop = clone(tmp_path, "laptop")
    collected = laptop.run("python", "-m", "excise", "collect", "mine.yaml")
    assert collected.returncode == 1
    assert one_line(collected).startswith("ERROR: mine-other-broken: is not at origin: ")
    document = (laptop.folder / "docs/mine.md").read_text()
    assert line(laptop, commit, "first") in document
    assert line(laptop, commit, "strict") in document
    assert "| broken | failed |" in document

    again = laptop.check("python", "-m", "excise", "experiment", "mine.yaml", "2")
    assert again == "mine-other-strict: already at origin\n"


@pytest.mark.nightly
def test_the_task_for_skypilot_runs_every_experiment_on_machines_that_share_nothing(
    project: Project, tmp_path: Path
) -> None:
    commit = with_origin(project, tmp_path)
    settings = engines(tmp_path / "engines")
    project.run("bash", "experiments/cluster/sky.sh", "mine.yaml", "--use-spot", **settings)
    launched = [launch.split() for launch in (tmp_path / "engines/sky.log").read_text().splitlines()]
    logs = [(tmp_path / f"engines/machine{number}.log").read_text() for number in (1, 2, 3)]
    assert launched == [["1", "False", "0"], ["2", "True", "0"], ["3", "True", "1"]], logs
    assert all(log.startswith("make environment") for log in logs)
    # Weights are not pushed: a machine that needs them makes the edit anew, and gets the same bytes.
    assert stages_run(logs[1]) == ["params", "ablate"], logs[1]
    assert pushed(tmp_path) == ["mine-other-first", "mine-other-strict"]

    laptop = clone(tmp_path, "laptop")
    laptop.run("python", "-m", "excise", "collect", "mine.yaml")
    assert line(laptop, commit, "strict") in (laptop.folder / "docs/mine.md").read_text()
    # What was pushed is whole: all but the weights, which come out the same.
    laptop.check("dvc", "exp", "branch", "mine-other-first", "kept")
    laptop.check("git", "switch", "--quiet", "--discard-changes", "kept")
    laptop.check("dvc", "pull", "--allow-missing")
    assert laptop.repro() == ["simulate", "ablate", "diagnose", "evaluate@base", "report"]
    assert laptop.check("git", "diff", "HEAD", "--", "params.yaml") == ""


@pytest.mark.nightly
def test_a_machine_that_dies_leaves_nothing_at_the_origin_and_its_run_can_be_repeated(
    project: Project, tmp_path: Path
) -> None:
    with_origin(project, tmp_path, FILE.replace("79", "78"))  # nothing of it is in the cache that tests share
    command = ["python", "-m", "excise", "experiment", "mine.yaml", "1"]
    log = tmp_path / "log"
    with open(log, "w") as output:
        running = subprocess.Popen(
            command, cwd=project.folder, env=environment(), stdout=output, stderr=output, start_new_session=True
        )
    while "Running stage 'answer@base'" not in log.read_text() and running.poll() is None:
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL, log.read_text()
    assert pushed(tmp_path) == []
    again = project.check(*command)
    # What was done before it died is in DVC's cache of runs, but for a trained model.
    assert stages_run(again) == ["params", "organism", *ASKED], again
    assert pushed(tmp_path) == ["mine-other-first"]
    assert project.check("git", "status", "--porcelain") == ""


@pytest.fixture
def alone(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project that experiments begin with, in which the test runs: with a cache of its own, and a DVC remote that is
    empty."""
    shutil.copytree(project.check("dvc", "cache", "dir").strip(), tmp_path / "cache")
    project.check("dvc", "config", "--local", "cache.dir", str(tmp_path / "cache"))
    # Another limit of a gate runs no stage but the first.
    with_origin(project, tmp_path, FILE.partition("groups:\n")[0] + ONE_GATE)
    shutil.rmtree(tmp_path / "remote")
    monkeypatch.chdir(project.folder)
    return project


def spoil(project: Project, output: str) -> Path:
    """Write other bytes into a file of an output that is a folder, in the cache: its object; a copy lies beside it."""
    objects = Path(project.check("dvc", "cache", "dir").strip()) / "files/md5"
    md5 = project.hashes()[output]
    listed = json.loads((objects / md5[:2] / md5[2:]).read_text())[0]["md5"]
    path = objects / listed[:2] / listed[2:]
    whole = path.read_bytes()
    path.rename(project.folder.parent / "whole")  # what is linked to it stays
    path.write_bytes(whole[::-1])
    path.chmod(0o444)
    return path


@pytest.mark.slow
def test_what_is_not_as_it_was_recorded_is_not_pushed(alone: Project, tmp_path: Path) -> None:
    commit = head()
    alone.check("git", "update-ref", reference(commit, "mine-gate-first"), commit)  # as if it had run
    spoiled = spoil(alone, "results/ablated")
    with pytest.raises(StageError) as caught:
        push_experiment("mine-gate-first", commit)
    line = str(caught.value)
    assert f"{spoiled} in DVC's cache, of results/ablated, has other bytes than its name stands for" in line
    assert "so nothing was pushed" in line and "another run of mine-gate-first makes results/ablated again" in line
    assert len(line) <= 400
    assert pushed(tmp_path) == [] and not list((tmp_path / "remote").rglob("*"))
    spoiled.unlink()
    with pytest.raises(StageError, match=r"ran, but DVC did not keep results/ablated in its cache"):
        push_experiment("mine-gate-first", commit)
    (tmp_path / "whole").rename(spoiled)
    push_experiment("mine-gate-first", commit)
    assert pushed(tmp_path) == ["mine-gate-first"]
    # What the table does not need is not sent; nor are weights.
    sent = {f"{path.parent.name}{path.name}" for path in (tmp_path / "remote").rglob("*") if path.is_file()}
    hashes = alone.hashes()
    assert {hashes["results/ablated"], hashes["models/base"]} <= sent
    assert not {hashes["artifacts/diagnosis.json"], hashes["models/ablated"]} & sent


@pytest.mark.nightly
def test_an_experiment_that_is_not_as_it_was_recorded_is_repeated_as_the_error_says(
    alone: Project, tmp_path: Path
) -> None:
    spoiled = spoil(alone, "results/ablated")
    failed = alone.excise("experiment", "mine.yaml", "1")
    assert stages_run(failed.stdout) == ["params"] and "so nothing was pushed; delete it" in one_line(failed)
    assert pushed(tmp_path) == []
    spoiled.unlink()
    again = alone.check("python", "-m", "excise", "experiment", "mine.yaml", "1")
    assert stages_run(again) == ["params", "evaluate@ablated"]
    assert pushed(tmp_path) == ["mine-gate-first"] and spoiled.read_bytes() == (tmp_path / "whole").read_bytes()


def test_the_first_of_each_group_runs_before_all_others(tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    other = FILE.partition("groups:\n")[2].replace("name: other", "name: half")
    file.write_text(FILE + other)
    _, groups = load(file, ROOT / "params.yaml")
    assert [(each.name, first.name) for each, first in in_order(groups)] == [
        ("mine-other-first", "mine-other-first"),
        ("mine-half-first", "mine-half-first"),
        ("mine-other-strict", "mine-other-first"),
        ("mine-other-broken", "mine-other-first"),
        ("mine-half-strict", "mine-half-first"),
        ("mine-half-broken", "mine-half-first"),
    ]


def test_the_sizes_of_job_arrays_are_printed(project: Project) -> None:
    (project.folder / "mine.yaml").write_text(FILE)
    assert project.check("python", "-m", "excise", "experiment", "mine.yaml", "--firsts") == "1\n"
    assert project.check("python", "-m", "excise", "experiment", "mine.yaml", "--count") == "3\n"


@pytest.mark.slow
def test_what_cannot_be_run_elsewhere_is_refused_in_one_line(project: Project, tmp_path: Path) -> None:
    (project.folder / "mine.yaml").write_text(FILE)

    def error(command: str, *arguments: str) -> str:
        return one_line(project.excise(command, "mine.yaml", *arguments))

    assert "no git remote called origin" in error("experiment", "1")
    assert "no git remote called origin" in error("collect")
    project.check("git", "remote", "add", "origin", str(tmp_path / "nowhere.git"))
    assert "origin cannot be reached" in error("experiment", "1")
    project.check("git", "init", "--quiet", "--bare", str(tmp_path / "nowhere.git"))
    assert "no experiment of mine.yaml that started from" in error("collect")
    assert "the experiments 1 to 3, and no number 4" in error("experiment", "4")
    assert "dvc remote add" in error("experiment", "1")
    project.replace("# What is removed from which model", "# Mine: what is removed from which model")
    assert "params.yaml has changes; commit them first" in error("experiment", "1")
