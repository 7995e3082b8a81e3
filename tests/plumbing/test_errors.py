"""How a stage or a command ends: its exit code, and one line where the user can mend it. Each runs as DVC or a person
would start it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]

PREAMBLE = """
import stages
import errno, os, sys, time
from schemas.wording import ParamsError
from excise.plumbing.errors import StageError, run_command, run_stage
def main():
"""


def stage(body: str, run: str = "run_stage") -> subprocess.CompletedProcess[str]:
    """A stage or a command whose `main` is this one line."""
    return subprocess.run(
        [sys.executable, "-c", f"{PREAMBLE}    {body}\n{run}(main)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_stage_that_ends_well_says_nothing() -> None:
    done = stage("pass")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        ("raise StageError('x is missing; fetch it')", 1, "x is missing; fetch it"),
        ("raise StageError('two\\n  lines\\u2028 or\\tthree')", 1, "two lines or three"),
        ("raise ParamsError('params.yaml', 'is wrong', ('a', 0, 'b'))", 2, "params.yaml: a.0.b is wrong"),
        ("open('/nowhere/x')", 1, "No such file or directory: /nowhere/x"),
        ("raise OSError('without a number')", 1, "without a number"),
        ("raise KeyboardInterrupt", 130, "interrupted; nothing was left half-written"),
    ],
)
@pytest.mark.parametrize("run", ["run_stage", "run_command"])
def test_what_the_user_can_mend_is_one_line_and_a_code(body: str, code: int, line: str, run: str) -> None:
    done = stage(body, run)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"ERROR: {line}\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_interrupted_tidies_up_and_tells_the_signal(number: signal.Signals) -> None:
    waiting = """
    try:
        print("begun", flush=True); time.sleep(60)
    finally:
        print("tidied up", flush=True)
run_command(main)
"""
    heeded = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    with subprocess.Popen(
        [sys.executable, "-c", f"{PREAMBLE}{waiting}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs these tests in the background has had the signal ignored.
        preexec_fn=lambda: signal.signal(number, heeded),
    ) as running:
        assert running.stdout is not None and running.stderr is not None
        assert running.stdout.readline() == "begun\n"
        running.send_signal(number)
        assert running.stdout.read() == "tidied up\n"
        assert running.stderr.read() == "ERROR: interrupted; nothing was left half-written\n"
    assert running.returncode == 128 + number


def test_a_full_disk_says_what_to_do() -> None:
    done = stage("raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), '/tmp/x')")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("ERROR: the disk is full: /tmp/x; ")
    assert "dvc gc" not in done.stderr  # which would empty a cache that others share


def test_a_defect_of_ours_keeps_its_traceback() -> None:
    done = stage("assert not 'possible'")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "ERROR: " not in done.stderr


def test_what_a_file_smuggles_into_a_message_does_not_reach_the_terminal() -> None:
    done = stage("raise StageError('tensor \\x1b[31m\\x07 is in no file')")
    assert done.stderr.strip().isprintable()


CHILD = f"{PREAMBLE}    print(os.getpid(), flush=True); time.sleep(60)\nrun_stage(main)"


def killed_with_its_parent(settings: dict[str, str], program: str = "import sys") -> bool:
    """Whether a stage is dead five seconds after the process that started it."""
    parent = f"""
{program}
import os, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdout=subprocess.PIPE, start_new_session=False)
print(child.stdout.readline().decode(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with subprocess.Popen(
        [sys.executable, "-c", parent],
        cwd=ROOT,
        env={**{name: text for name, text in os.environ.items() if name != "DVC_STAGE"}, **settings},
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        child = psutil.Process(int(running.stdout.readline()))
    try:
        child.wait(timeout=2)
        return True
    except psutil.TimeoutExpired:
        child.kill()
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a process with its parent")
def test_a_stage_dies_with_dvc_and_a_person_s_command_outlives_their_shell() -> None:
    assert killed_with_its_parent({"DVC_STAGE": "ablate"})
    assert not killed_with_its_parent({})


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a process with its parent")
def test_a_target_dies_with_make() -> None:
    rename = "import ctypes; ctypes.CDLL(None).prctl(15, b'make', 0, 0, 0)"  # PR_SET_NAME
    assert killed_with_its_parent({}, rename)


def test_a_stage_dies_with_dvc_before_its_libraries_are_imported() -> None:
    """They take seconds."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, stages, excise.cli; sys.exit(', '.join({'pydantic', 'torch', 'numpy'} & {*sys.modules}) or 0)",
        ],
        cwd=ROOT,
        env={**os.environ, "DVC_STAGE": "ablate"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("command", "code"),
    [(["stages.params"], 1), (["stages.measure"], 1), (["excise", "gate"], 2), (["excise", "pin"], 1)],
)
def test_outside_of_the_environment_a_stage_is_one_line(command: list[str], code: int) -> None:
    done = subprocess.run(
        # Without site-packages, as the system's own Python.
        [sys.executable, "-S", "-m", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code and done.stderr.count("\n") == 1 and len(done.stderr) < 400
    assert done.stderr.startswith("ERROR: the package ") and "make repro" in done.stderr


def test_a_module_of_ours_that_is_missing_keeps_its_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import stages, excise.nowhere"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" in done.stderr
