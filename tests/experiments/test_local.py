"""Experiments run through DVC's queue: their tables are true, and what is not theirs stays as it was."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from excise.gitops.experiments import runs
from excise.gitops.git import file_of
from schemas.experiments import Planned
from schemas.params.document import Params
from tests.experiments.clusters import results_of
from tests.projects import Project, environment
from tests.workflows import lend_environment

FILE = """
name: mine
output: docs/mine.md
columns:
  - {title: refusal, metric: refusal.organism_harmful.refusal_rate}
  - {title: right answers, metric: refusal.organism_harmful.exact_match}
  - {title: KL, metric: drift.first_token_kl}
groups:
  - name: narrow
    experiments:
      - {name: half, title: half of it, set: {ablate.rules.0.scale: 0.37}}
      - {name: broken, set: {ablate.rules.0.layers: [77]}}
  - name: other
    title: Another organism
    set: {organism.seed: 77, organism.pretrain_steps: 3, organism.tune_steps: 2}
    experiments:
      - {name: whole}
      - name: "two"
        set:
          ablate.rules:
            - {layers: 1-2, measurement: same, experts: null}
            - {layers: [3, 4], measurement: 4, scale: 1.37, targets: [attention, mlp]}
"""
ARGUMENTS = {
    "narrow-half": "-S ablate.rules.0.scale=0.37",
    "narrow-broken": "-S 'ablate.rules.0.layers=[77]'",
    "other-whole": "-S organism.seed=77 -S organism.pretrain_steps=3 -S organism.tune_steps=2",
    "other-two": "-S organism.seed=77 -S organism.pretrain_steps=3 -S organism.tune_steps=2 "
    "-S 'ablate.rules=[{layers: 1-2, measurement: same, experts: null}, "
    "{layers: [3, 4], measurement: 4, scale: 1.37, targets: [attention, mlp]}]'",
}
KEPT = ("params.yaml", "dvc.yaml", "dvc.lock", "metrics.json", "gates.json", "report/report.md")


def reference(project: Project, name: str) -> str:
    head = project.check("git", "rev-parse", "HEAD").strip()
    return f"refs/exps/{head[:2]}/{head[2:]}/mine-{name}"


def line(project: Project, name: str, title: str) -> str:
    """The row that an experiment's own metrics make."""
    found = results_of(project, reference(project, name))
    return row(found["metrics"]["refusal"]["organism_harmful"], found["drift"], name, title)


def row(asked: dict[str, float], drift: dict[str, float], name: str, title: str) -> str:
    values = [asked["refusal_rate"], asked["exact_match"], drift["first_token_kl"]]
    return f"| {title} | {' | '.join(f'{value:.4f}' for value in values)} | `dvc exp run {ARGUMENTS[name]}` |"


def contents(project: Project) -> list[bytes]:
    return [(project.folder / name).read_bytes() for name in KEPT]


@pytest.mark.nightly
def test_experiments_are_run_tabulated_and_replaced(project: Project) -> None:
    (project.folder / "mine.yaml").write_text(FILE)
    (project.folder / "notes.txt").write_text("untracked\n")
    project.replace("# What is removed from which model", "# Not yet committed: what is removed from which model")
    project.check("dvc", "exp", "run", "--queue", "--name", "somebody-else-s")
    before, status = contents(project), project.check("git", "status", "--porcelain")

    done = project.run("python", "-m", "excise", "experiments", "mine.yaml", "--jobs", "2")
    assert done.returncode == 1, done.stdout + done.stderr
    (error,) = done.stderr.strip().splitlines()
    assert error.startswith("ERROR: mine-narrow-broken: params.yaml: ablate.rules.0.layers: ")
    document = (project.folder / "docs/mine.md").read_text()
    assert line(project, "narrow-half", "half of it") in document
    assert f"| broken | failed |  |  | `dvc exp run {ARGUMENTS['narrow-broken']}` |" in document
    assert "## Another organism\n\n<!-- table:begin other -->" in document
    assert line(project, "other-whole", "whole") in document
    assert line(project, "other-two", "two") in document
    log = project.check("dvc", "queue", "logs", "mine-other-two")
    assert "Stage 'prepare' didn't change, skipping" in log
    # What the tables do not show is not made, and no commit shows another run's in its place.
    assert "Running stage 'evaluate@ablated'" in log
    assert "Running stage 'diagnose'" not in log and "Running stage 'report'" not in log
    for name in ("metrics.json", "gates.json", "report/report.md", "report/pictures"):
        assert project.run("git", "show", f"{reference(project, 'other-two')}:{name}").returncode != 0

    assert contents(project) == before
    assert project.check("git", "status", "--porcelain") == status.replace("?? mine", "?? docs/mine.md\n?? mine")
    assert "somebody-else-s" in project.check("dvc", "queue", "status")

    # The same names again, one with another value; the other group is gone from the file, not from the document.
    first = project.check("git", "rev-parse", reference(project, "narrow-half"))
    kept = project.check("git", "rev-parse", reference(project, "other-two"))
    (project.folder / "mine.yaml").write_text(
        FILE[: FILE.index("      - {name: broken")].replace("scale: 0.37", "scale: -0.37")
    )
    (project.folder / "docs/mine.md").write_text("what I think\n\n" + document)
    project.check("python", "-m", "excise", "experiments", "mine.yaml")
    assert project.check("git", "rev-parse", reference(project, "narrow-half")) != first
    assert project.check("git", "rev-parse", reference(project, "other-two")) == kept
    again = (project.folder / "docs/mine.md").read_text()
    assert again.startswith("what I think\n\n# mine\n")
    assert line(project, "narrow-half", "half of it").replace("=0.37", "=-0.37") in again
    assert "| broken |" not in again
    assert again.partition("## Another organism")[2] == document.partition("## Another organism")[2]
    assert project.check("dvc", "queue", "status").count("mine-narrow-half") == 1

    # In the workspace an experiment gets its diagnosis and its report, whose metrics are those of its row.
    project.commit("tables")
    project.check("dvc", "exp", "apply", kept.strip())
    assert project.repro() == ["simulate", "diagnose", "evaluate@base", "report"]
    metrics: dict[str, Any] = json.loads((project.folder / "metrics.json").read_text())
    assert row(metrics["refusal"]["organism_harmful"], metrics["drift"], "other-two", "two") in again


def test_make_passes_the_file_and_the_number_of_jobs(project: Project) -> None:
    lend_environment(project.folder, Path(sys.prefix))
    assert "argument --jobs: must be at least 1, got 0" in project.run("make", "experiments", "JOBS=0").stderr
    assert "ERROR: my file.yaml" in project.run("make", "experiments", "FILE=my file.yaml").stderr
    assert "experiments/moe.yaml" in project.check("make", "--dry-run", "experiments")


GRAPH = """
stages:
  wait:
    cmd: |
      timeout 60 sh -c 'until test -e {told} || grep -q true params.yaml; do sleep 0.1; done' && touch out
    params: [quick]
    outs: [out]
"""


def planned(name: str, argument: str) -> Planned:
    return Planned(name, name, (argument,), Params())


@pytest.mark.slow
def test_an_experiment_is_told_of_when_it_is_done_and_not_when_all_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow one ends only after it was told that the quick one has."""
    project = Project(tmp_path / "project")
    project.folder.mkdir()
    told = tmp_path / "told"
    (project.folder / "dvc.yaml").write_text(GRAPH.format(told=told))
    (project.folder / "params.yaml").write_text("quick: null\n")
    project.check("git", "init", "--quiet")
    project.check("dvc", "init", "--quiet")
    project.commit("first")
    monkeypatch.chdir(project.folder)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(runs, "TARGET", "wait")
    runs.queue(planned("quick", "quick=true"))
    runs.queue(planned("slow", "quick=false"))
    finished: list[str] = []

    def tell(name: str) -> None:
        finished.append(name)
        told.touch()

    runs.wait(["quick", "slow"], 1, tell)
    assert finished == ["quick", "slow"]
    for name in finished:
        assert file_of(Path(), runs.reference(runs.head(), name), "dvc.lock") is not None, runs.failure(name)
