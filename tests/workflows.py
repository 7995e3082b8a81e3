"""The workflows' own commands, run here as GitHub would run them, in clones that stand for its machines."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.projects import ROOT

WORKFLOWS = ROOT / ".github/workflows"
_EXPRESSION = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)
_WORD = re.compile(r"'[^']*'|!=|==|&&|\|\||!|[A-Za-z_][\w.-]*\(?|[(),]")


def workflow(name: str) -> dict[str, Any]:
    """A workflow's file."""
    return dict(YAML(typ="safe", pure=True).load((WORKFLOWS / f"{name}.yml").read_text()))


def job(name: str, which: str) -> dict[str, Any]:
    """A job of a workflow, with the workflow's own variables among its."""
    whole = workflow(name)
    part = dict(whole["jobs"][which])
    return {**part, "env": {**whole.get("env", {}), **part.get("env", {})}}


def value(expression: str, context: Mapping[str, str]) -> Any:
    """What an expression without its braces is: operators, literals and `format`; what is not set is empty."""
    python = []
    for word in _WORD.findall(expression):
        operators = {"&&": " and ", "||": " or ", "!": " not ", "format(": "form("}
        if word in operators:
            python.append(operators[word])
        elif word[0].isalpha() or word[0] == "_":
            python.append(f"get({word!r})")
        else:
            python.append(word)
    given = {"get": lambda name: context.get(name, ""), "form": lambda text, *parts: text.format(*parts)}
    return eval("".join(python), {"__builtins__": {}}, given)


def filled(text: str, context: Mapping[str, str]) -> str:
    """A text with its expressions' values."""
    return _EXPRESSION.sub(lambda found: str(value(found[1], context)), text)


def allowed(part: Mapping[str, Any], context: Mapping[str, str]) -> bool:
    """Whether the `if:` of a job or step lets it run."""
    return bool(value(str(part["if"]).strip(), context)) if "if" in part else True


@dataclass
class Machine:
    """A machine with one clone on it."""

    folder: Path
    origin: Path
    temporary: Path
    """Its folder for one job, with a folder for artifacts beside it."""
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, part: Mapping[str, Any], context: Mapping[str, str]) -> list["subprocess.CompletedProcess[str]"]:
        """Run a job's steps, as far as each may run, until one fails; what its commands printed."""
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)
        context = {**context, "runner.temp": str(self.temporary)}
        settings = {name: filled(text, context) for name, text in part.get("env", {}).items()}
        context |= {f"env.{name}": text for name, text in settings.items()}
        within = part.get("defaults", {}).get("run", {}).get("working-directory", ".")
        done = []
        for step in part["steps"]:
            if not allowed(step, context):
                continue
            if "uses" in step:
                self._use(step, context)
                continue
            own = {name: filled(text, context) for name, text in step.get("env", {}).items()}
            done.append(self.shell(step["run"], {**settings, **own}, within))
            if done[-1].returncode != 0:
                break
        return done

    def shell(self, command: str, settings: Mapping[str, str], within: str = ".") -> "subprocess.CompletedProcess[str]":
        """A step's command, in GitHub's shell and a folder of the workspace."""
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", command],
            cwd=self.folder / within,
            env=self.settings(settings),
            capture_output=True,
            text=True,
            timeout=900,
        )

    def settings(self, more: Mapping[str, str]) -> dict[str, str]:
        """The environment of a step: nothing of the tests' own virtual environment."""
        ours = {name: text for name, text in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
        return {
            **ours,
            "PYTHONWARNINGS": "ignore",
            "GITHUB_STEP_SUMMARY": str(self.temporary / "summary.md"),
            "RUNNER_TEMP": str(self.temporary),
            **self.environment,
            **more,
        }

    def _use(self, step: Mapping[str, Any], context: Mapping[str, str]) -> None:
        action = step["uses"].partition("@")[0]
        given = {name: filled(str(text), context) for name, text in step.get("with", {}).items()}
        artifacts = self.temporary.parent / "artifacts"
        if action == "actions/checkout":
            self._check_out(given, context.get("github.ref_name") or "main")
        elif action == "actions/upload-artifact":
            shutil.rmtree(artifacts / given["name"], ignore_errors=True)
            shutil.copytree(given["path"], artifacts / given["name"])
        elif action == "actions/download-artifact":
            shutil.copytree(artifacts / given["name"], given["path"], symlinks=True)
        else:
            assert action in ("actions/setup-python", "actions/create-github-app-token"), action

    def _check_out(self, given: Mapping[str, str], default: str) -> None:
        assert given["persist-credentials"] == "False"
        folder = self.folder / given.get("path", ".")
        if not (folder / ".git").exists():
            git(self.folder.parent, "clone", "--quiet", "--no-checkout", str(self.origin), str(folder))
        git(folder, "fetch", "--quiet", "--prune", "--tags", "--force", "origin")
        if given.get("clean") != "False":
            git(folder, "clean", "-ffdxq")
        wanted = given.get("ref") or default
        known = subprocess.run(["git", "rev-parse", "--verify", f"origin/{wanted}"], cwd=folder, capture_output=True)
        reference = f"origin/{wanted}" if known.returncode == 0 else wanted
        git(folder, "checkout", "--quiet", "--force", "--detach", reference)


def git(folder: Path, *arguments: str) -> str:
    """What git says in a folder."""
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def lend_environment(folder: Path, prefix: Path, lock: str = "requirements.lock") -> None:
    """Give a clone the virtual environment of these tests as its own, so that `make` finds it made from a lock."""
    place = folder / ".venv"
    place.mkdir()
    for part in ("bin", "lib", "lib64", "include", "pyvenv.cfg"):
        if (prefix / part).exists():
            (place / part).symlink_to(prefix / part)
    shutil.copyfile(folder / lock, place / "requirements.lock")
