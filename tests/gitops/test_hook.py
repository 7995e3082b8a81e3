"""The lock on the runner's door: a job of a fork ends before any of its steps, whatever their conditions say."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.projects import ROOT

HOOK = ROOT / ".github/runner/job-started.sh"

WORKER = """
import pathlib, subprocess, sys
hook, ran = sys.argv[1], pathlib.Path(sys.argv[2])
failed = subprocess.run(["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", hook]).returncode != 0
# As actions/runner's StepsRunner does: the hook is a step, and each later one has a condition of its own.
for name, condition in (("default", "success()"), ("cleanup", "always()"), ("report", "failure()")):
    if condition == "always()" or (condition == "failure()") == failed:
        with ran.open("a") as file:
            file.write(name + " ")
sys.exit(failed)
"""
"""A stand-in for the runner's worker, which starts the hook and then runs the steps of the job."""

OF_THE_TEAM = {"pull_request": {"head": {"repo": {"full_name": "team/models"}}}}
OF_A_FORK = {"pull_request": {"head": {"repo": {"full_name": "stranger/models"}}}}
REFUSED = {
    "a fork": ("pull_request", json.dumps(OF_A_FORK)),
    "a fork that was deleted": ("pull_request", json.dumps({"pull_request": {"head": {"repo": None}}})),
    "a fork named in other letters": ("pull_request", json.dumps(OF_A_FORK).replace("stranger/models", "Team/Models")),
    "a pull request of nobody": ("pull_request", "{}"),
    "an event that is not JSON": ("pull_request", "{"),
    "an event that is a list": ("pull_request", "[]"),
    "an event that is missing": ("pull_request", None),
    "the target of a pull request": ("pull_request_target", json.dumps(OF_THE_TEAM)),
    "a comment": ("issue_comment", "{}"),
    "what follows another workflow": ("workflow_run", "{}"),
    "an event without a name": ("", "{}"),
}
ALLOWED = {
    "a branch of the team": ("pull_request", json.dumps(OF_THE_TEAM)),
    "a push": ("push", "{}"),
    "a run by hand": ("workflow_dispatch", "{}"),
}


def work(folder: Path, name: str, event: str | None, worker: str = "Runner.Worker", **settings: str) -> tuple[int, str]:
    """A job with this event: the worker's exit code, and the steps that it ran."""
    (folder / worker).symlink_to(sys.executable)
    (folder / "json.py").write_text("print('allowed'); import os; os._exit(0)")  # in a folder that a stranger filled
    if event is not None:
        (folder / "event.json").write_text(event)
    given = {"GITHUB_EVENT_NAME": name, "GITHUB_EVENT_PATH": str(folder / "event.json")}
    done = subprocess.run(
        [folder / worker, "-S", "-c", WORKER, str(HOOK), str(folder / "ran")],
        cwd=folder,
        env={**os.environ, **given, "GITHUB_REPOSITORY": "team/models", **settings},
        capture_output=True,
        text=True,
    )
    ran = folder / "ran"
    return done.returncode, ran.read_text() if ran.exists() else ""


@pytest.mark.parametrize(("name", "event"), REFUSED.values(), ids=REFUSED)
def test_no_step_of_a_refused_job_runs_whatever_its_condition(name: str, event: str | None, tmp_path: Path) -> None:
    code, ran = work(tmp_path, name, event)
    assert ran == "" and code == -9


@pytest.mark.parametrize(("name", "event"), ALLOWED.values(), ids=ALLOWED)
def test_a_job_of_the_team_runs(name: str, event: str, tmp_path: Path) -> None:
    assert work(tmp_path, name, event) == (0, "default cleanup ")


def test_a_job_is_refused_where_python_cannot_be_asked(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for program in ("bash", "sed"):
        (tmp_path / "bin" / program).symlink_to(f"/bin/{program}")
    code, ran = work(tmp_path, "pull_request", json.dumps(OF_A_FORK), PATH=str(tmp_path / "bin"))
    assert ran == "" and code == -9


def test_a_worker_of_another_name_ends_too(tmp_path: Path) -> None:
    code, ran = work(tmp_path, "pull_request", json.dumps(OF_A_FORK), worker="worker")
    assert ran == "" and code == -9


def test_the_stand_in_runs_what_a_hook_that_only_fails_lets_through(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "fails.sh").write_text("exit 1\n")
    monkeypatch.setattr(f"{__name__}.HOOK", tmp_path / "fails.sh")
    assert work(tmp_path, "pull_request", json.dumps(OF_A_FORK)) == (1, "cleanup report ")
