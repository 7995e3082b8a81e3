"""A run that is to be published: its branch in an origin, the files of its handover, and a server for GitHub."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.gitops.fake_github import OWN, FakeGitHub
from tests.projects import ROOT, Project

DOCUMENTS = ("dvc.lock", "gates.json", "metrics.json", "report/comparison.json", "report/report.md")

GRAPH = """
stages:
  report:
    cmd: report
    deps: [params.yaml]
    outs:
""" + "".join(f"      - {path}: {{cache: false}}\n" for path in DOCUMENTS[1:])


@dataclass(frozen=True)
class Published:
    """A run that was handed on, and where it goes."""

    clone: Project
    """Of the base branch."""
    origin: Project
    handover: Path
    hub: FakeGitHub
    base: str
    head: str

    @property
    def settings(self) -> Mapping[str, str]:
        """What the workflow sets."""
        return {
            "PYTHONPATH": str(ROOT),
            **self.hub.environment,
            "GITHUB_TOKEN": "ghs_secret",
            "BASE": self.base,
            "BRANCH": "topic",
            "COMMIT": self.head,
            "PULL_REQUEST": "12",
        }

    def publish(self, **settings: str) -> "subprocess.CompletedProcess[str]":
        """The command, as the workflow calls it."""
        command = ("python", "-m", "excise", "publish", str(self.handover))
        return self.clone.run(*command, **{**self.settings, **settings})

    @property
    def comments(self) -> list[str]:
        return [each["body"] for each in self.hub.comments if each["author"] == OWN]

    @property
    def tip(self) -> str:
        return self.origin.check("git", "rev-parse", "topic").strip()


def prepare(folder: Path, hub: FakeGitHub) -> Published:
    """A branch that changes a scale, and a run of it whose results are the committed ones of this project."""
    work = Project(folder / "work")
    for path in ("params.yaml", *DOCUMENTS):
        (work.folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, work.folder / path)
    write_as_before(work.folder / "gates.json")
    (work.folder / "dvc.yaml").write_text(GRAPH)
    work.check("git", "init", "--quiet", "--initial-branch", "main")
    base = work.commit("base")
    work.check("git", "checkout", "--quiet", "-b", "topic")
    work.replace("scale: 1.4", "scale: 0.5")
    head = work.commit("head")
    work.check("git", "clone", "--quiet", "--bare", ".", str(folder / "origin.git"))
    origin = Project(folder / "origin.git")
    origin.check("git", "clone", "--quiet", "--branch", "main", ".", str(folder / "clone"))

    handover = folder / "handover"
    for path in DOCUMENTS:
        (handover / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, handover / path)
    run = Published(Project(folder / "clone"), origin, handover, hub, base, head)
    lock(run)
    return run


def write_as_before(path: Path) -> None:
    """Have gates.json be that of an earlier version, in which the last gate was inconclusive."""
    gates = json.loads(path.read_text())
    for gate in gates["gates"]:
        gate.pop("inconclusive", None)
        gate["verdict"] = "pass"
    gates["verdict"] = gates["gates"][-1]["verdict"] = "warn"
    path.write_text(json.dumps(gates, indent=2))


def lock(run: Published) -> None:
    """Have dvc.lock record what is handed on now, and the parameters of the head."""

    def entry(path: str, data: bytes) -> str:
        return f"    - {{path: {path}, md5: {hashlib.md5(data).hexdigest()}, size: {len(data)}}}\n"

    params = run.origin.check("git", "show", f"{run.head}:params.yaml").encode()
    outputs = "".join(entry(path, (run.handover / path).read_bytes()) for path in DOCUMENTS[1:])
    text = f"stages:\n  report:\n    cmd: report\n    deps:\n{entry('params.yaml', params)}    outs:\n{outputs}"
    (run.handover / "dvc.lock").write_text(text)
