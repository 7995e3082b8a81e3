"""The user's day, by the workflows' own commands: a laptop pushes, the team's machine runs what changed, the pull
request shows it, and any commit gives its model back.

The origin is a bare repository, the DVC remote a folder, GitHub a server on this machine. The tests are one story, told
in order; what of it is told at night begins where the branch does.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from excise.gitops.comment import MARKER
from tests.gitops.fake_github import OWN, FakeGitHub, fake_github
from tests.pipeline.test_reproduction import model_bytes
from tests.pipeline.test_reruns import ABLATE, MEASURE, REPORT
from tests.projects import Project, environment, stages_run
from tests.workflows import Machine, allowed, git, job, lend_environment

pytestmark = pytest.mark.slow


@dataclass
class Team:
    """Everybody and everything, and what happened so far."""

    folder: Path
    laptop: Project
    runner: Machine
    publisher: Machine
    hub: FakeGitHub
    first: str
    """The commit on main."""
    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """The edited model of each commit."""
    summary: str = ""
    """Of the last run, as GitHub shows it."""

    def change(self, old: str, new: str) -> str:
        """Change a line on the branch and push it; the commit."""
        self.laptop.replace(old, new)
        commit = self.laptop.commit(f"{old} becomes {new}")
        self.laptop.check("git", "push", "--quiet", "origin", "HEAD")
        return commit

    def context(self, commit: str) -> dict[str, str]:
        """What GitHub says of a push to the pull request's branch."""
        return {
            "github.event_name": "pull_request",
            "github.repository": "team/models",
            "github.event.repository.default_branch": "main",
            "github.event.pull_request.head.repo.full_name": "team/models",
            "github.event.pull_request.head.sha": commit,
            "github.event.pull_request.base.sha": self.first,
            "github.event.pull_request.number": "12",
            "github.head_ref": "topic",
            "github.token": "ghs_secret",
            "vars.DVC_CACHE": str(self.folder / "cache"),
        }

    def reproduce(self, context: dict[str, str]) -> list[str]:
        """The jobs on the team's machine: the stages that ran."""
        said = ""
        for which in ("fetch", "repro", "keep"):
            part = job("repro", which)
            assert allowed(part, context)
            steps = self.runner.run(part, context)
            assert steps[-1].returncode == 0, steps[-1].stdout + steps[-1].stderr
            said += "".join(step.stdout for step in steps)
            if which == "repro":
                self.summary = (self.runner.temporary / "summary.md").read_text()
        self.models[context["github.event.pull_request.head.sha"]] = model_bytes(Project(self.runner.folder))
        return stages_run(said)

    def publish(self, context: dict[str, str]) -> str:
        """The same job when it must succeed: what it printed."""
        done = self.try_to_publish(context)
        gates = self.hub.statuses[-1][1]["state"] if self.hub.statuses else ""
        assert done.returncode == (2 if gates == "failure" else 0), done.stdout + done.stderr
        return done.stdout + done.stderr

    def try_to_publish(self, context: dict[str, str]) -> "subprocess.CompletedProcess[str]":
        """The job on GitHub's machine, in a clone that is new each time but for its environment."""
        kept = self.publisher.folder / ".venv"
        if kept.exists():
            kept.rename(self.folder / "kept")
        shutil.rmtree(self.publisher.folder, ignore_errors=True)
        git(self.folder, "clone", "--quiet", "--no-checkout", str(self.runner.origin), str(self.publisher.folder))
        if (self.folder / "kept").exists():
            (self.folder / "kept").rename(kept)
        (self.publisher.folder / ".git/info/exclude").write_text("/.venv/\n")
        part = {**job("repro", "publish")}
        part["steps"] = [step for step in part["steps"] if allowed(step, context)]
        for step in part["steps"]:
            if "checkout" in step.get("uses", ""):
                # A new machine has no environment; keeping ours saves its installation.
                step["with"]["clean"] = False
        (*_, last) = self.publisher.run(part, context)
        return last

    @property
    def comment(self) -> str:
        """The one that we keep."""
        (body,) = (each["body"] for each in self.hub.comments if each["author"] == OWN)
        assert body.startswith(MARKER)
        return str(body)


@pytest.fixture(scope="module")
def team(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """The first commit is pushed, with what its run left; a branch is begun; the team's machine knows nothing yet."""
    folder = tmp_path_factory.mktemp("team")
    origin, cache = folder / "origin.git", folder / "laptop-cache"
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch", "main", str(origin)], check=True)
    shutil.copytree(finished.folder, folder / "laptop", symlinks=True)
    laptop = Project(folder / "laptop")
    shutil.copytree(finished.folder.parent / "cache", cache)
    laptop.check("dvc", "config", "--local", "cache.dir", str(cache))
    laptop.check("dvc", "remote", "add", "--default", "storage", str(folder / "storage"))
    laptop.check("git", "branch", "--move", "main")
    laptop.check("git", "remote", "add", "origin", str(origin))
    first = laptop.commit("a remote")
    laptop.check("git", "push", "--quiet", "origin", "main")
    laptop.check("dvc", "push")
    laptop.check("git", "checkout", "--quiet", "-b", "topic")

    git(folder, "clone", "--quiet", str(origin), str(folder / "runner"))
    lend_environment(folder / "runner", Path(sys.prefix))
    git(folder, "clone", "--quiet", str(origin), str(folder / "runner/trusted"))
    lend_environment(folder / "runner/trusted", Path(sys.prefix), "requirements-remote.lock")
    with fake_github() as hub:
        hub.say("somebody", "What does this do?")
        runner = Machine(folder / "runner", origin, folder / "runs/runner", hub.environment)
        publisher = Machine(folder / "publisher", origin, folder / "runs/publisher", hub.environment)
        yield Team(folder, laptop, runner, publisher, hub, first, {first: model_bytes(laptop)})


def take_over(team: Team) -> None:
    """What a colleague does to have what the machine recorded."""
    team.laptop.check("git", "pull", "--quiet", "--ff-only", "origin", "topic")
    team.laptop.check("dvc", "pull", "--allow-missing", "--force")


def test_a_changed_rule_runs_what_follows_it_and_is_shown_and_recorded(team: Team) -> None:
    commit = team.change("scale: 1.4", "scale: 0.6")
    context = team.context(commit)
    assert team.reproduce(context) == ABLATE
    assert "scale" in team.summary

    published = team.publish(context)
    recorded = git(team.runner.origin, "rev-parse", "topic")
    assert git(team.runner.origin, "log", "-1", "--format=%P", recorded) == commit
    assert [to for to, _ in team.hub.statuses] == [commit, recorded]
    assert "ablate.rules.0.scale" in team.comment and "0.6" in team.comment
    assert f"/raw/{recorded}/report/pictures/" in team.comment
    assert "ghs_secret" not in published + team.comment


def test_the_laptop_takes_it_over_and_has_nothing_to_do(team: Team) -> None:
    take_over(team)
    assert team.laptop.repro("--allow-missing") == []
    assert not team.laptop.check("git", "status", "--porcelain")
    # The weights were not sent: where they are wanted, they alone are made again, to the same bytes.
    recorded = (team.laptop.folder / "dvc.lock").read_bytes()
    assert team.laptop.repro() == ["ablate"]
    (commit,) = team.models.keys() - {team.first}
    assert model_bytes(team.laptop) == team.models[commit]
    assert (team.laptop.folder / "dvc.lock").read_bytes() == recorded


def test_a_changed_gate_runs_the_report_alone_and_the_comment_is_the_same_one(team: Team) -> None:
    before = team.comment
    context = team.context(team.change("at_most: 0.15", "at_most: 0.9"))
    assert team.reproduce(context) == REPORT
    team.publish(context)
    assert team.comment != before and "gates.0.at_most" in team.comment
    take_over(team)


def test_a_run_of_what_is_recorded_runs_nothing_and_records_nothing(team: Team) -> None:
    recorded = git(team.runner.origin, "rev-parse", "topic")
    context = team.context(recorded)
    before = team.comment
    assert team.reproduce(context) == []
    team.publish(context)
    assert git(team.runner.origin, "rev-parse", "topic") == recorded
    assert team.comment == before
    assert team.hub.statuses[-1][0] == recorded


@pytest.mark.nightly
def test_a_changed_measurement_runs_what_follows_it(team: Team) -> None:
    context = team.context(team.change("position: -1", "position: -3"))
    assert team.reproduce(context) == MEASURE
    team.publish(context)
    assert "measure.position" in team.comment
    take_over(team)


@pytest.mark.nightly
def test_what_was_pushed_meanwhile_is_not_overwritten(team: Team) -> None:
    commit = team.change("winsorize: null", "winsorize: 0.9")
    context = team.context(commit)
    team.reproduce(context)
    later = team.change("winsorize: 0.9", "winsorize: null")
    comment, statuses = team.comment, len(team.hub.statuses)
    published = team.try_to_publish(context)
    assert published.returncode != 0 and "moved on" in published.stderr
    assert git(team.runner.origin, "rev-parse", "topic") == later
    assert (team.comment, len(team.hub.statuses)) == (comment, statuses)


def test_the_first_model_comes_back_from_the_cache_and_without_it(team: Team) -> None:
    machine = team.runner
    # The machine began with the branch: main's own model it never made.
    for place, words in (("new", "rebuilt"), ("with", "from the cache"), ("without", "rebuilt")):
        if place == "without":
            shutil.rmtree(team.folder / "cache")
            shutil.rmtree(machine.folder / "models")
        out = team.folder / place
        made = machine.shell("make model", {"COMMIT": team.first, "OUT": str(out)})
        assert made.returncode == 0, made.stdout + made.stderr
        assert words in made.stdout
        found = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        assert found == team.models[team.first]


@pytest.mark.nightly
def test_a_second_run_in_one_clone_is_refused_and_spoils_nothing(team: Team) -> None:
    with running(team, "scale: 0.3") as first:
        second = team.runner.shell("make rerun", {})
        assert second.returncode != 0
        assert "is busy" in second.stderr or "lock" in second.stderr, second.stderr
        assert first.wait() == 0
    assert team.runner.shell("dvc status", {"PATH": environment()["PATH"]}).stdout.count("up to date") == 1


@pytest.mark.nightly
def test_a_machine_that_is_killed_recovers_by_itself(team: Team) -> None:
    with running(team, "scale: 0.4") as first:
        for process in [*psutil.Process(first.pid).children(recursive=True), psutil.Process(first.pid)]:
            process.send_signal(signal.SIGKILL)
        first.wait()
    context = team.context(git(team.runner.folder, "rev-parse", "HEAD"))
    # The line stands in the clone alone: checking the branch out again undoes it, as after any run.
    assert team.reproduce(context)
    assert team.runner.shell("dvc status", {"PATH": environment()["PATH"]}).stdout.count("up to date") == 1


class running:
    """A run on the team's machine with another scale, in the middle of a stage."""

    def __init__(self, team: Team, scale: str) -> None:
        machine = Project(team.runner.folder)
        (before,) = re.findall(r"scale: [\d.]+", (machine.folder / "params.yaml").read_text())
        machine.replace(before, scale)
        self._command = subprocess.Popen(
            ["make", "rerun"],
            cwd=team.runner.folder,
            env=team.runner.settings({}),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> "subprocess.Popen[str]":
        assert self._command.stdout is not None
        for line in self._command.stdout:
            if line.startswith("Running stage 'evaluate@ablated'"):
                break
        time.sleep(0.5)
        return self._command

    def __exit__(self, *_: object) -> None:
        if self._command.poll() is None:
            os.kill(self._command.pid, signal.SIGKILL)
        self._command.communicate()
