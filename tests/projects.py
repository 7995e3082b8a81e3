"""Copies of this project for tests to run `dvc` in."""

import os
import re
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

QUICK = {
    "pretrain_steps: 260": "pretrain_steps: 30",
    "tune_steps: 300": "tune_steps: 10",
    "limit: null               # samples": "limit: 16  # samples",
}
"""Lines of params.yaml that make a run short."""


@dataclass(frozen=True)
class Project:
    """A copy of this project with a git repository of its own."""

    folder: Path

    def run(self, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the project, with this test's Python first in the path."""
        return subprocess.run(
            command, cwd=self.folder, env=environment(**settings), capture_output=True, text=True, timeout=600
        )

    def check(self, *command: str) -> str:
        """Run a command that must succeed, and give what it printed."""
        done = self.run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def repro(self, *options: str) -> list[str]:
        """`dvc repro`, which must succeed: the names of the stages that ran."""
        return stages_run(self.check("dvc", "repro", *options))

    def stage(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One stage by itself, as DVC would start it."""
        return self.run("python", "-m", f"stages.{name}", *arguments)

    def excise(self, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """A command of `python -m excise`, as a person or a workflow would start it."""
        return self.run("python", "-m", "excise", *command, **settings)

    def replace(self, old: str, new: str, file: str = "params.yaml") -> None:
        """Change the one place in a file that reads `old`."""
        path = self.folder / file
        text = path.read_text()
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file}"
        path.write_text(text.replace(old, new))

    def commit(self, message: str) -> str:
        """Commit everything, and give the commit's name."""
        self.check("git", "add", "--all")
        self.check("git", "commit", "--quiet", "--message", message)
        return self.check("git", "rev-parse", "HEAD").strip()

    def hashes(self) -> dict[str, str]:
        """The path and MD5 of every output in dvc.lock."""
        lock = (self.folder / "dvc.lock").read_text()
        outputs = re.findall(r"^    outs:\n((?:^    [- ] .*\n)+)", lock, flags=re.MULTILINE)
        return {
            path: md5
            for block in outputs
            for path, md5 in re.findall(r"- path: (\S+)\n      hash: md5\n      md5: (\S+)", block)
        }


def environment(**settings: str) -> dict[str, str]:
    """This process's environment with its own Python's programs first, and an identity for git."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "GIT_AUTHOR_NAME": "test",
        "GIT_AUTHOR_EMAIL": "test@localhost",
        "GIT_COMMITTER_NAME": "test",
        "GIT_COMMITTER_EMAIL": "test@localhost",
        "PYTHONWARNINGS": "ignore",
        **settings,
    }


def stages_run(output: str) -> list[str]:
    """The stages that `dvc repro` says it ran."""
    return re.findall(r"^Running stage '(.+)':$", output, flags=re.MULTILINE)


def copy_project(folder: Path) -> Project:
    """What git would commit of this project now, in a repository of its own."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    # What the last run of the defaults left; a copy with other parameters starts without.
    for made in ("dvc.lock", "metrics.json", "gates.json", "report/report.md"):
        (folder / made).unlink(missing_ok=True)
    shutil.rmtree(folder / "report/pictures", ignore_errors=True)
    project = Project(folder)
    project.check("git", "init", "--quiet")
    return project


def quicken(project: Project) -> None:
    """Make its runs short."""
    for old, new in QUICK.items():
        project.replace(old, new)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line by which a stage failed."""
    assert done.returncode != 0, done.stdout
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("ERROR: "), done.stderr
    return lines[0]


@dataclass(frozen=True)
class FirstRun:
    """A project after everything ran, and what that took."""

    project: Project
    seconds: float
    bytes: int
    """Memory of the largest process so far that this one waited for."""


def first_run(project: Project) -> FirstRun:
    """Run every stage."""
    began = time.monotonic()
    assert len(project.repro()) == 13
    seconds = time.monotonic() - began
    # The largest of all, in kibibytes.
    return FirstRun(project, seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
