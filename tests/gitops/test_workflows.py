"""What the workflows may do, and that they hold no logic of their own."""

import os
import re
import subprocess
from typing import Any

import pytest
from ruamel.yaml import YAML

from excise.gitops.handover import DOCUMENTS, PICTURES, REPORT
from tests.projects import ROOT, environment
from tests.workflows import WORKFLOWS, allowed, filled, job, value, workflow

NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.yml"))
JOBS = [(name, which) for name in NAMES for which in workflow(name)["jobs"]]
STEPS = [(name, which, step) for name, which in JOBS for step in job(name, which)["steps"]]
PLAIN = {
    "git clean -ffd --quiet",
    "git clean -ffdx --quiet",
    job("reviewed", "repro")["steps"][0]["run"],
}
"""Commands that are no target: they come before the code that they protect from is run, or behind it."""

OWN = {"github.event_name": "pull_request", "github.event.pull_request.head.repo.full_name": "team/models"}
FORK = {**OWN, "github.event.pull_request.head.repo.full_name": "stranger/models"}
BY_HAND = {"github.event_name": "workflow_dispatch"}
EVENTS = {
    "own": {**OWN, "github.repository": "team/models"},
    "fork": {**FORK, "github.repository": "team/models"},
    "by hand": {**BY_HAND, "github.repository": "team/models"},
}


def test_the_audit_finds_nothing() -> None:
    done = subprocess.run(["make", "audit"], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("name", "which", "step"), [each for each in STEPS if "run" in each[2]])
def test_a_step_is_a_target_that_is_there_and_no_logic(name: str, which: str, step: dict[str, Any]) -> None:
    command = step["run"]
    assert "${{" not in command
    if command in PLAIN:
        return
    found = re.fullmatch(r'(?:OUT="\$GITHUB_STEP_SUMMARY" )?make ([a-z -]+)', command)
    assert found, command
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(found[1].split()) <= set(targets)


@pytest.mark.parametrize(("name", "which", "step"), [each for each in STEPS if "uses" in each[2]])
def test_an_action_is_pinned_by_its_commit_and_leaves_no_token_behind(
    name: str, which: str, step: dict[str, Any]
) -> None:
    assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", step["uses"])
    if step["uses"].startswith("actions/checkout@"):
        assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize(("name", "which"), JOBS)
def test_a_job_may_only_what_it_says(name: str, which: str) -> None:
    assert workflow(name)["permissions"] == {}
    writes = {right for right, how in job(name, which)["permissions"].items() if how == "write"}
    assert writes == {
        ("repro", "publish"): {"contents", "pull-requests", "statuses"},
        ("release", "attach"): {"contents"},
    }.get((name, which), set())
    if writes:
        assert job(name, which)["runs-on"] == "ubuntu-24.04"


@pytest.mark.parametrize(("event", "runs"), [("own", True), ("fork", False), ("by hand", True)])
def test_a_fork_reaches_neither_the_machine_nor_a_job_behind_it(event: str, runs: bool) -> None:
    jobs = workflow("repro")["jobs"]
    assert allowed(jobs["fetch"], EVENTS[event]) is runs
    # Each of the others needs one before it, and is skipped with it.
    assert [jobs[which]["needs"] for which in ("repro", "keep", "publish")] == ["fetch", "repro", "keep"]
    assert not any("if" in jobs[which] for which in ("repro", "keep", "publish"))


def test_a_strangers_commit_runs_only_on_a_machine_for_strangers() -> None:
    part = job("reviewed", "repro")
    assert not allowed(part, {}) and allowed(part, {"vars.REVIEWED_LABEL": "strangers"})
    assert filled(part["runs-on"][1], {"vars.REVIEWED_LABEL": "strangers"}) == "strangers"
    assert part["environment"] == "gpu-reviewed" and "secrets." not in str(workflow("reviewed"))
    (checkout,) = (step for step in part["steps"] if "checkout" in step.get("uses", ""))
    assert "clean" not in checkout["with"] and part["env"]["REMOTE"] == "none"
    (restore,) = (step for step in part["steps"] if step.get("run") == "make restore")
    assert restore["env"]["LINKS"] == "copy"
    last = part["steps"][-1]
    assert (last["if"], last["run"]) == ("always()", "git clean -ffdx --quiet")


def test_fast_tests_run_for_every_event_and_slow_ones_at_night_or_on_demand() -> None:
    assert job("test", "test")["strategy"]["matrix"]["python"] == ["3.11", "3.13"]
    for event in workflow("test")["on"]:
        context = {"github.event_name": event}
        assert allowed(job("test", "test"), context)
        assert allowed(job("test", "slow"), context) is (event in ("schedule", "workflow_dispatch"))
    kinds = job("test", "slow")["strategy"]["matrix"]["tests"]
    commands = [step for step in job("test", "slow")["steps"] if "run" in step]
    ran = [step["run"] for kind in kinds for step in commands if allowed(step, {"matrix.tests": kind})]
    assert ran == ["make test-slow", "make test-nightly"]


def test_a_fork_cannot_cancel_a_branch_of_the_same_name() -> None:
    group = job("repro", "repro")["concurrency"]["group"]
    own, fork = (filled(group, {**EVENTS[event], "github.head_ref": "topic"}) for event in ("own", "fork"))
    assert own == "repro-team/models-topic" != fork


def test_a_reviewed_commit_is_named_by_forty_digits() -> None:
    first = job("reviewed", "repro")["steps"][0]
    given = [("a" * 40, "/cache", 0), ("a" * 40, "", 1)]
    given += [(name, "/cache", 1) for name in ("main", "A" * 40, "a" * 39, "$(touch here)", "")]
    for commit, cache, code in given:
        settings = {**os.environ, "COMMIT": commit, "CACHE": cache}
        done = subprocess.run(["bash", "-e", "-c", first["run"]], env=settings, capture_output=True)
        assert done.returncode == code, commit


def secrets(part: object) -> set[str]:
    return set(re.findall(r"secrets\.(\w+)", str(part))) | ({"token"} & set(re.findall(r"github\.(token)", str(part))))


@pytest.mark.parametrize(("name", "which"), JOBS)
def test_no_code_of_a_commit_runs_in_a_job_that_holds_a_token(name: str, which: str) -> None:
    part = job(name, which)
    assert not secrets({**part, "steps": None})
    writes = "write" in part["permissions"].values()
    if not (secrets(part) or writes):
        return
    context = {"github.event.repository.default_branch": "main", "env.COMMIT": "commit", "env.TAG": "tag"}
    checkouts = [step["with"] for step in part["steps"] if "checkout" in step.get("uses", "")]
    assert [filled(checkout["ref"], context) for checkout in checkouts] == ["main"]
    # Installed before, by hash, in a step that holds nothing.
    steps = [step for step in part["steps"] if "run" in step]
    assert steps[0]["run"] == "make environment" and not secrets(steps[0])
    locks = {step["env"]["LOCK"] for step in steps}
    assert len(locks) == 1
    text = (ROOT / locks.pop()).read_text()
    pins = re.findall(r"^[a-z0-9].*==", text, flags=re.MULTILINE | re.IGNORECASE)
    assert pins and text.count("--hash=sha256:") >= len(pins)


def test_a_step_holds_the_secrets_that_it_needs_and_no_others() -> None:
    keys = {"DVC_ACCESS_KEY_ID", "DVC_SECRET_ACCESS_KEY"}
    needed = {"make fetch": keys, "make keep": keys, "make upload": {"HF_TOKEN"}}
    needed |= {"make publish": {"token"}, "make attach": {"token"}}
    for _, _, step in STEPS:
        of_app = {"APP_PRIVATE_KEY"} if "create-github-app-token" in step.get("uses", "") else set()
        assert secrets(step) == needed.get(step.get("run", ""), of_app), step


def test_a_run_hands_on_all_that_stages_write_outside_the_cache() -> None:
    stages = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())["stages"].values()
    outputs = [out for stage in stages for kind in ("outs", "metrics") for out in stage.get("do", stage).get(kind, [])]
    committed = {path for out in outputs if isinstance(out, dict) for path, how in out.items() if "cache" in how}
    assert committed | {"dvc.lock"} == {*DOCUMENTS, PICTURES}
    assert REPORT in outputs


def test_every_file_that_stages_depend_on_starts_the_workflow() -> None:
    stages = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())["stages"].values()
    made = ("artifacts", "models", "results", "${")
    needed = {dep for stage in stages for dep in stage.get("do", stage)["deps"] if not dep.startswith(made)}
    paths = [path.removesuffix("/**") for path in workflow("repro")["on"]["pull_request"]["paths"]]
    assert {dep for dep in needed if not any(dep == path or dep.startswith(f"{path}/") for path in paths)} == set()
    assert {"dvc.yaml", "dvc.lock", "requirements.lock", ".dvc/config", "Makefile"} <= set(paths)


def test_expressions_are_read_as_github_reads_them() -> None:
    context = {"a": "x", "github.event_name": "push"}
    assert value("a && 'yes' || 'no'", context) == "yes"
    assert value("b && 'yes' || 'no'", context) == "no"
    assert value("!b", context) and not value("!a", context)
    assert value("github.event_name == 'push' || a == 'y'", context)
    assert filled("${{ b || format('origin/{0}', a) }}-${{ a }}", context) == "origin/x-x"


HELD = {
    "gpu": {"DVC_CACHE", "DVC_ACCESS_KEY_ID", "DVC_SECRET_ACCESS_KEY"},
    "gpu-reviewed": {"DVC_CACHE"},
    "publish": {"APP_CLIENT_ID", "APP_PRIVATE_KEY"},
    "hub": {"DVC_CACHE", "HF_TOKEN"},
    "": set(),
}
"""What each environment holds, as docs/runner.md says."""

OF_THE_REPOSITORY = {"PIP_EXTRA_INDEX_URL", "COMMENT_SAMPLES", "KEYS_LABEL", "REVIEWED_LABEL"}
KNOWN = {
    "env.COMMIT",
    "env.TAG",
    "github.event.pull_request.base.sha",
    "github.event.pull_request.head.repo.full_name",
    "github.event.pull_request.head.sha",
    "github.event.pull_request.number",
    "github.event.repository.default_branch",
    "github.event_name",
    "github.head_ref",
    "github.ref",
    "github.ref_name",
    "github.repository",
    "github.sha",
    "github.token",
    "inputs.commit",
    "inputs.hub",
    "inputs.tag",
    "runner.temp",
    "steps.app.outputs.token",
}


@pytest.mark.parametrize(("name", "which"), JOBS)
@pytest.mark.parametrize("event", ["own", "by hand"])
def test_a_job_names_what_its_environment_holds(name: str, which: str, event: str) -> None:
    part = job(name, which)
    holds = HELD[filled(part.get("environment", ""), EVENTS[event])]
    assert set(re.findall(r"\b(?:vars|secrets)\.(\w+)", str(part))) <= holds | OF_THE_REPOSITORY
    guide = (ROOT / "docs/runner.md").read_text()
    assert all(f"`{held}`" in guide for held in [*holds, *OF_THE_REPOSITORY])


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_names_nothing_that_is_misspelt(name: str) -> None:
    found = " ".join(expressions(workflow(name)))
    named = set(re.findall(r"\b(?:github|inputs|runner|steps)\.[A-Za-z_][\w.]*", found))
    assert named and named <= KNOWN


def expressions(place: object) -> list[str]:
    """What GitHub evaluates within a part of a workflow."""
    if isinstance(place, str):
        return re.findall(r"\$\{\{(.*?)\}\}", place)
    children = place.items() if isinstance(place, dict) else enumerate(place) if isinstance(place, list) else ()
    found = [part for _, child in children for part in expressions(child)]
    return [*found, str(place["if"])] if isinstance(place, dict) and "if" in place else found
