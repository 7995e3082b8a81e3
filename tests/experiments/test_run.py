"""Experiments run through DVC's queue: their tables are true, and what is not theirs stays as it was."""

import json
from typing import Any

import pytest

from tests.projects import Project

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
    metrics: dict[str, Any] = json.loads(project.check("git", "show", f"{reference(project, name)}:metrics.json"))
    asked = metrics["refusal"]["organism_harmful"]
    values = [asked["refusal_rate"], asked["exact_match"], metrics["drift"]["first_token_kl"]]
    return f"| {title} | {' | '.join(f'{value:.4f}' for value in values)} | `dvc exp run {ARGUMENTS[name]}` |"


def contents(project: Project) -> list[bytes]:
    return [(project.folder / name).read_bytes() for name in KEPT]


@pytest.mark.slow
def test_experiments_are_run_tabulated_and_replaced(project: Project) -> None:
    (project.folder / "mine.yaml").write_text(FILE)
    (project.folder / "notes.txt").write_text("untracked\n")
    project.replace("# What is removed from which model", "# Not yet committed: what is removed from which model")
    project.check("dvc", "exp", "run", "--queue", "--name", "somebody-else-s")
    before, status = contents(project), project.check("git", "status", "--porcelain")

    done = project.run("python", "-m", "excise.gitops.experiments.run", "mine.yaml", "--jobs", "2")
    assert done.returncode == 1, done.stdout + done.stderr
    (error,) = done.stderr.strip().splitlines()
    assert error.startswith("ERROR: mine-narrow-broken: params.yaml: ablate.rules.0.layers: ")
    document = (project.folder / "docs/mine.md").read_text()
    assert line(project, "narrow-half", "half of it") in document
    assert f"| broken | failed |  |  | `dvc exp run {ARGUMENTS['narrow-broken']}` |" in document
    assert "## Another organism\n\n<!-- table:begin other -->" in document
    assert line(project, "other-whole", "whole") in document
    assert line(project, "other-two", "two") in document
    assert "Stage 'prepare' didn't change, skipping" in project.check("dvc", "queue", "logs", "mine-other-two")

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
    project.check("python", "-m", "excise.gitops.experiments.run", "mine.yaml")
    assert project.check("git", "rev-parse", reference(project, "narrow-half")) != first
    assert project.check("git", "rev-parse", reference(project, "other-two")) == kept
    again = (project.folder / "docs/mine.md").read_text()
    assert again.startswith("what I think\n\n# mine\n")
    assert line(project, "narrow-half", "half of it").replace("=0.37", "=-0.37") in again
    assert "| broken |" not in again
    assert again.partition("## Another organism")[2] == document.partition("## Another organism")[2]
    assert project.check("dvc", "queue", "status").count("mine-narrow-half") == 1


def test_make_hands_over_the_file_and_the_number_of_jobs(project: Project) -> None:
    assert 'excise.gitops.experiments.run "mine.yaml" --jobs "3"' in project.check(
        "make", "--dry-run", "experiments", "FILE=mine.yaml", "JOBS=3"
    )
    assert 'excise.gitops.experiments.run "experiments/moe.yaml" --jobs "1"' in project.check(
        "make", "--dry-run", "experiments"
    )
