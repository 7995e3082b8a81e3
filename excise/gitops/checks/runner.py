"""A runner's environment and hook, and the settings of the repository at GitHub."""

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from excise.gitops.checks.findings import SECONDS_TO_ANSWER, Clone, Finding, good, note, same_bytes, unless_wrong, wrong
from excise.gitops.git import answer
from excise.gitops.programs import environment

HOOK = "ACTIONS_RUNNER_HOOK_JOB_STARTED"
SHIPPED_HOOK = Path(".github/runner/job-started.sh")

_REVIEWED = {"gpu-reviewed": True, "hub": False}
"""Environments that need required reviewers, and whether these must be others than who asks."""


def secrets(clone: Clone) -> Iterator[Finding]:
    yield from unless_wrong(_set(clone), "no token and no permission is set that a job should not have")


def _set(clone: Clone) -> Iterator[Finding]:
    variables = {**_variables(clone.runner), **os.environ}
    where = "the runner's .env and service"
    if variables.get("EXCISE_TRUST_REMOTE_CODE"):
        if clone.is_on_runner:
            what = "EXCISE_TRUST_REMOTE_CODE is set: a commit can name a model whose code then runs on this machine"
            yield wrong(what, f"remove it from {where}")
        else:
            yield note("EXCISE_TRUST_REMOTE_CODE is set: code of the models that it names runs here (docs/hub.md)")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if variables.get(name) and clone.is_on_runner:
            remedy = f"remove it from {where}, and fetch gated models once yourself (docs/runner.md)"
            yield wrong(f"{name} is set on a runner, where every job can read it", remedy)


def hook(clone: Clone) -> Iterator[Finding]:
    if not clone.is_on_runner:
        yield note("this is no runner's workspace, so its hook was not looked for")
        return
    install = f"copy {SHIPPED_HOOK} to a folder of root's, and name it as {HOOK} in the runner's .env (docs/runner.md)"
    named = os.environ.get(HOOK) or _variables(clone.runner).get(HOOK)
    if not named:
        yield wrong(f"{HOOK} is not set: nothing refuses a fork's job on this machine", install)
        return
    path = Path(named)
    if not path.is_file():
        yield wrong(f"{HOOK} names {path}, which is not there", install)
        return
    yield from unless_wrong(_hook_state(clone, path, install), f"{path} is this commit's, and no job can rewrite it")


def _hook_state(clone: Clone, path: Path, install: str) -> Iterator[Finding]:
    if not same_bytes(path, clone.folder / SHIPPED_HOOK):
        yield wrong(
            f"{path} is not the {SHIPPED_HOOK} of this commit", "read the difference, and copy it again, as root"
        )
    around = [
        clone.folder,
        *(Path(os.environ[name]) for name in ("GITHUB_WORKSPACE", "RUNNER_WORKSPACE") if name in os.environ),
    ]
    if any(path.resolve().is_relative_to(folder.resolve()) for folder in around):
        yield wrong(f"{path} is in a workspace, where a job can rewrite it", install)
    if os.geteuid() == 0:
        yield wrong(
            "jobs run as root here, and can rewrite the hook", "run the runner as a user of its own (docs/runner.md)"
        )
    elif writable := [each for each in (path.resolve(), *path.resolve().parents) if os.access(each, os.W_OK)]:
        remedy = f"`sudo chown root: {writable[0]} && sudo chmod go-w {writable[0]}`"
        yield wrong(f"{writable[0]} is writable by this user, so a job can rewrite the hook", remedy)


def _variables(runner: Path | None) -> dict[str, str]:
    """What the .env of a runner sets for its jobs."""
    if runner is None or not (runner / ".env").is_file():
        return {}
    lines = (runner / ".env").read_text(encoding="utf-8", errors="replace").splitlines()
    return {name: value for name, equals, value in (line.partition("=") for line in lines) if equals}


def github(clone: Clone) -> Iterator[Finding]:
    address = (answer(clone.folder, "remote", "get-url", "origin") or "").strip()
    if (found := re.search(r"github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?$", address)) is None:
        yield note("origin is not at github.com, so no settings of a repository were looked at")
        return
    if shutil.which("gh", path=environment()["PATH"]) is None or _gh("auth", "status") is None:
        yield note(
            f"settings of {found[1]} were not looked at: install `gh`, run `gh auth login` and this again, or see "
            "Settings → Actions → General (approval for forks, permissions) and → Environments (docs/runner.md)"
        )
        return
    place = f"repos/{found[1]}"
    yield from _approval(place)
    yield from _permissions(place)
    yield from _environments(place)


def _approval(place: str) -> Iterator[Finding]:
    path = f"{place}/actions/permissions/fork-pr-contributor-approval"
    if (found := _api(path)) is None:
        yield _unread(path)
    elif (policy := found.get("approval_policy")) != "all_external_contributors":
        remedy = f"`gh api -X PUT {path} -f approval_policy=all_external_contributors`"
        yield wrong(f"workflows of forks need approval only by the policy {policy}", remedy)
    else:
        yield good("workflows of all external contributors need approval")


def _permissions(place: str) -> Iterator[Finding]:
    path = f"{place}/actions/permissions/workflow"
    if (found := _api(path)) is None:
        yield _unread(path)
    elif found.get("default_workflow_permissions") != "read" or found.get("can_approve_pull_request_reviews"):
        fields = "-f default_workflow_permissions=read -F can_approve_pull_request_reviews=false"
        yield wrong("workflows may write, or approve, by default", f"`gh api -X PUT {path} {fields}`")
    else:
        yield good("workflows may only read by default")


def _environments(place: str) -> Iterator[Finding]:
    path = f"{place}/environments"
    if (found := _api(path)) is None:
        yield _unread(path)
        return
    rules = {each["name"]: each.get("protection_rules") or [] for each in found.get("environments") or []}
    for name, by_others in _REVIEWED.items():
        reviews = [rule for rule in rules.get(name, []) if rule.get("type") == "required_reviewers"]
        remedy = f"set it in Settings → Environments → {name} (docs/runner.md)"
        if name not in rules:
            yield wrong(f"there is no environment {name}: GitHub would create it without any protection", remedy)
        elif not reviews:
            yield wrong(f"the environment {name} has no required reviewers", remedy)
        elif by_others and not reviews[0].get("prevent_self_review"):
            yield wrong(f"who asks for a run in the environment {name} may also approve it", remedy)
        else:
            yield good(f"the environment {name} has required reviewers")


def _unread(path: str) -> Finding:
    return note(f"`gh api {path}` gave no answer: only an administrator of the repository may see it")


def _api(path: str) -> dict[str, Any] | None:
    """What GitHub answers, as far as it is a mapping."""
    data = _gh("api", path)
    with contextlib.suppress(ValueError):
        found = json.loads(data or "")
        return found if isinstance(found, dict) else None
    return None


def _gh(*arguments: str) -> str | None:
    """What GitHub's own program prints; None where it fails."""
    try:
        done = subprocess.run(
            ["gh", *arguments],
            env={**environment(), "GH_PROMPT_DISABLED": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS_TO_ANSWER,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
