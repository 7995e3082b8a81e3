"""A run that is killed leaves nothing half-made in a model's place and nothing running, and can be run again."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.projects import Project, environment

SLOW_DISK = """
import time as _time
_fast_copy = _copy
def _copy(*arguments):
    _time.sleep(1)
    _fast_copy(*arguments)
"""
"""Appended to the code that writes checkpoints, so that there is a middle to be killed in."""


@contextmanager
def ablating(project: Project, **settings: str) -> Iterator[tuple[psutil.Process, psutil.Process]]:
    """DVC and its ablate stage, in the middle of writing."""
    with open(project.folder / "excise/edit/checkpoint.py", "a") as file:
        file.write(SLOW_DISK)
    partial = project.folder / "models/.ablated.partial"
    with subprocess.Popen(
        ["dvc", "repro"],
        cwd=project.folder,
        env=environment(**settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as running:
        dvc = psutil.Process(running.pid)
        until(lambda: (partial / "model.safetensors").is_file())
        try:
            yield dvc, ablate_process(dvc)
        finally:
            running.kill()


def ablate_process(dvc: psutil.Process) -> psutil.Process:
    found = [child for child in dvc.children(recursive=True) if child.cmdline()[-1:] == ["stages.ablate"]]
    assert len(found) == 1
    return found[0]


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something that must happen."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def run_again(project: Project, scale: str) -> None:
    """The disk is fast again and everything is made. The scale is one that no test ran, so DVC has nothing stored."""
    code = project.folder / "excise/edit/checkpoint.py"
    code.write_text(code.read_text().replace(SLOW_DISK, ""))
    project.replace("scale: 0.5", f"scale: {scale}")
    project.repro()
    assert (project.folder / "models/ablated/edit.json").is_file()
    assert sorted(path.name for path in (project.folder / "models").iterdir() if path.is_dir()) == ["ablated", "base"]


@pytest.mark.nightly
def test_a_killed_stage_leaves_no_model_and_runs_again(project: Project) -> None:
    project.replace("scale: 1.4", "scale: 0.5")
    with ablating(project) as (dvc, stage):
        stage.send_signal(signal.SIGKILL)
        until(lambda: gone(dvc))
    assert not (project.folder / "models/ablated").exists()
    run_again(project, "0.6")


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["/bin/sh", pytest.param("/bin/bash", marks=pytest.mark.nightly)])
def test_a_killed_dvc_takes_its_stage_along_and_runs_again(project: Project, shell: str) -> None:
    if not Path(shell).exists():
        pytest.skip(f"there is no {shell} here")
    project.replace("scale: 1.4", "scale: 0.5")
    with ablating(project, SHELL=shell) as (dvc, stage):
        dvc.send_signal(signal.SIGKILL)
        until(lambda: gone(stage), seconds=5)
    assert not (project.folder / "models/ablated").exists()
    run_again(project, "0.7" if shell == "/bin/sh" else "0.8")


def test_an_interrupted_stage_says_so_in_one_line(project: Project) -> None:
    with open(project.folder / "excise/edit/checkpoint.py", "a") as file:
        file.write(SLOW_DISK)
    with subprocess.Popen(
        ["python", "-m", "stages.ablate"],
        cwd=project.folder,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs these tests in the background has had the signal ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as running:
        until(lambda: (project.folder / "models/.ablated.partial/model.safetensors").is_file())
        running.send_signal(signal.SIGINT)
        assert running.stderr is not None
        assert running.stderr.read() == "ERROR: interrupted; nothing was left half-written\n"
    assert running.returncode == 128 + signal.SIGINT
    assert not (project.folder / "models/.ablated.partial").exists()


@pytest.mark.skipif(os.name != "posix", reason="locks are POSIX's")
@pytest.mark.slow
def test_a_second_run_at_once_is_refused(project: Project) -> None:
    project.replace("scale: 1.4", "scale: 0.5")
    project.stage("params")
    with ablating(project):
        done = project.stage("ablate")
        assert done.returncode == 1
        assert "is being written by another run" in done.stderr


SLOW_ANSWERS = """
import time
from lm_eval.models.huggingface import HFLM
_fast = HFLM.generate_until
def _slow(*arguments, **settings):
    time.sleep(1)
    return _fast(*arguments, **settings)
HFLM.generate_until = _slow
"""
"""Run before the stage, so that there is a middle to be killed in, and no code that answers depend on is another."""

LEFT = "as before: "


@pytest.fixture
def interrupted(project: Project, tmp_path: Path) -> list[str]:
    """The project's two tasks that were finished when `answer` was killed. What is kept of them is marked."""
    shutil.rmtree(project.folder / ".excise", ignore_errors=True)
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow/sitecustomize.py").write_text(SLOW_ANSWERS)
    with subprocess.Popen(
        ["python", "-m", "stages.answer", "base"],
        cwd=project.folder,
        env=environment(PYTHONPATH=str(tmp_path / "slow")),
        stderr=subprocess.DEVNULL,
    ) as running:
        until(lambda: len(kept(project)) == 2)
        running.kill()
    for path in kept(project):
        path.write_text(path.read_text().replace('"response": "', f'"response": "{LEFT}'))
    return sorted(path.stem for path in kept(project))


def kept(project: Project) -> list[Path]:
    return list((project.folder / ".excise/unfinished/answer@base").glob("*/*.json"))


def answered(project: Project) -> dict[str, str]:
    """What the base says in each task now."""
    done = project.stage("answer", "base")
    assert done.returncode == 0, done.stderr
    assert kept(project) == []
    return {path.stem: path.read_text() for path in (project.folder / "answers/base/responses").glob("*.jsonl")}


@pytest.mark.slow
def test_an_interrupted_stage_goes_on_with_what_is_missing(project: Project, interrupted: list[str]) -> None:
    responses = answered(project)
    assert len(responses) == 4
    assert sorted(name for name, text in responses.items() if LEFT in text) == interrupted


@pytest.mark.nightly
def test_what_other_code_left_is_not_used(project: Project, interrupted: list[str]) -> None:
    """As where the rendering of chats was wrong for a while: whatever it gave must not come under the good code."""
    with open(project.folder / "excise/prompts/chats.py", "a") as file:
        file.write("# mended\n")
    assert not any(LEFT in text for text in answered(project).values())
