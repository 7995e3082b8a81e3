"""Kills at random moments, from a fixed seed: nothing half-written is accepted, nothing restored in part is called
whole, and five seconds later nothing that was started runs. `make test-nightly` runs all; `make test-slow` the first
tenth.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from excise.gitops.models import recorded_files, wrong_file
from excise.plumbing.errors import StageError
from tests.projects import Project, environment
from tests.workflows import lend_environment

MARK = "EXCISE_TEST_OF_KILLS"
SECONDS = 5.0

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a process with its parent")


def some(tenth: int) -> pytest.MarkDecorator:
    """How many kills a test makes: all of them at night, the first tenth of the same in the slow run."""
    return pytest.mark.parametrize(
        "kills", [pytest.param(tenth, marks=pytest.mark.slow), pytest.param(10 * tenth, marks=pytest.mark.nightly)]
    )


class Killer:
    """Starts commands in a project, and kills each at a moment that a seed decides."""

    def __init__(self, project: Project, seed: int) -> None:
        self._project = project
        self._random = random.Random(seed)
        self._mark = f"{os.getpid()}-{id(self)}"
        self.seen: dict[str, int] = {}
        """How often a signal met a running command."""

    def kill(self, command: Sequence[str], latest: float, **settings: str) -> None:
        """SIGKILL meets one of the command's processes, whichever; SIGTERM the first of them; SIGINT, as from a
        terminal, their group."""
        running = subprocess.Popen(
            command,
            cwd=self._project.folder,
            env=environment(**settings, **{MARK: self._mark}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            # A shell that runs these tests in the background has had the signal ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        wait, number = self._random.uniform(0.1, latest), self._random.choice((9, 9, signal.SIGTERM, signal.SIGINT))
        which = self._random.random()
        time.sleep(wait)
        began = time.monotonic()
        if running.poll() is None:
            self.seen[signal.Signals(number).name] = self.seen.get(signal.Signals(number).name, 0) + 1
            if number == signal.SIGKILL:
                started = self.alive()
                started[int(which * len(started))].kill()
            elif number == signal.SIGTERM:
                running.terminate()
            else:
                os.killpg(running.pid, signal.SIGINT)
        if number == signal.SIGKILL:  # of one process among several the others report it, and end
            running.wait(timeout=60)
            began = time.monotonic()
        assert not self.outlive(began)
        running.wait()

    def outlive(self, began: float) -> list[str]:
        """What is there five seconds after."""
        while (left := self.alive()) and time.monotonic() < began + SECONDS:
            time.sleep(0.05)
        return [" ".join(process.cmdline()) for process in left]

    def alive(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == self._mark:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found


def files(folder: Path, kept: Callable[[str], bool] = lambda _: True) -> dict[str, bytes]:
    """Everything below a folder, but for what no stage writes."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if kept(name) and not name.startswith(".")}


def is_whole(model: Path) -> bool:
    try:
        return wrong_file(model, recorded_files(model)) is None
    except StageError:
        return False


@some(5)
def test_killed_stages_leave_whole_outputs_or_none(project: Project, kills: int) -> None:
    params = (project.folder / "params.yaml").read_text()
    before = files(project.folder / "models/ablated")
    killer = Killer(project, seed=1)
    for number in range(kills):
        key, value = (
            ("winsorize: null", f"winsorize: 0.9{number:03}")
            if number % 4 == 3
            else ("scale: 1.4", f"scale: 0.5{number:03}")
        )
        (project.folder / "params.yaml").write_text(params.replace(key, value))
        killer.kill(["python", "-m", "excise", "repro", "ablate"], latest=8.0)
        if (model := project.folder / "models/ablated").exists() and not is_whole(model):
            # DVC itself may have been killed while it removed or linked a folder: then it must not take it for whole.
            assert '"models/ablated": "modified"' in project.check("dvc", "status", "--json", "ablate")
        for path in (project.folder / "artifacts").rglob("*.json"):
            json.loads(path.read_text())
    (project.folder / "params.yaml").write_text(params)
    project.check("python", "-m", "excise", "repro", "ablate")
    assert files(project.folder / "models/ablated") == before
    assert not [path for path in (project.folder / "models").iterdir() if path.name.endswith((".partial", ".old"))]
    print(killer.seen)


@some(3)
def test_a_killed_make_model_gives_the_whole_model_or_none(project: Project, tmp_path: Path, kills: int) -> None:
    shutil.copytree(project.check("dvc", "cache", "dir").strip(), tmp_path / "cache")
    project.check("dvc", "config", "--local", "cache.dir", str(tmp_path / "cache"))
    lend_environment(project.folder, Path(sys.prefix))
    (project.folder / ".git/info/exclude").write_text("/.venv/\n")
    expected, out = files(project.folder / "models/ablated"), tmp_path / "out"
    md5 = project.hashes()["models/ablated"]
    killer = Killer(project, seed=2)
    for number in range(kills):
        if number % 3:  # it must be made again
            (tmp_path / "cache/files/md5" / md5[:2] / md5[2:]).unlink(missing_ok=True)
        killer.kill(["make", "model"], latest=8.0, COMMIT="HEAD", OUT=str(out))
        assert not out.exists() or files(out) == expected
        shutil.rmtree(out, ignore_errors=True)
    project.check("python", "-m", "excise", "model", "HEAD", str(out))
    assert files(out) == expected
    assert [path.name for path in (project.folder / ".dvc/tmp/models").iterdir()] == ["lock"]
    assert [path.name for path in tmp_path.glob(".out.*")] == [".out.lock"]
    assert project.check("git", "worktree", "list").count("\n") == 1
    print(killer.seen)


@some(4)
def test_a_restore_after_killed_ones_is_whole(project: Project, tmp_path: Path, kills: int) -> None:
    project.check("dvc", "remote", "add", "--default", "storage", str(tmp_path / "storage"))
    project.commit("a remote")
    project.check("dvc", "push")
    made = ("artifacts/", "models/base/", "results/", "report/")
    expected = files(project.folder, lambda name: name.startswith(made))
    restore = ["python", "-m", "excise", "restore"]
    for number in range(0, kills, 2):
        clone = Project(tmp_path / f"clone-{number}")
        project.check("git", "clone", "--quiet", ".", str(clone.folder))
        killer = Killer(clone, seed=300 + number)
        killer.kill(restore, latest=3.0)
        killer.kill(restore, latest=3.0)
        done = clone.run(*restore)
        assert done.returncode == 0, done.stdout + done.stderr
        assert files(clone.folder, lambda name: name.startswith(made)) == expected
        shutil.rmtree(clone.folder)
        print(killer.seen)
