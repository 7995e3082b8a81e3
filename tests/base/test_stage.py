"""How a stage ends: its exit code, and one line where the user can mend it. Each runs as DVC would start it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PREAMBLE = """
import errno, os, sys, time
from schemas.params import ParamsError
from stages.base.stage import StageError, run_stage
def main():
"""


def stage(body: str) -> subprocess.CompletedProcess[str]:
    """A stage whose `main` is this one line."""
    return subprocess.run(
        [sys.executable, "-c", f"{PREAMBLE}    {body}\nrun_stage(main)"],
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
def test_what_the_user_can_mend_is_one_line_and_a_code(body: str, code: int, line: str) -> None:
    done = stage(body)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"ERROR: {line}\n")


def test_a_full_disk_says_what_to_do() -> None:
    done = stage("raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), '/tmp/x')")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("ERROR: the disk is full: /tmp/x; ") and "dvc gc" in done.stderr


def test_a_defect_of_ours_keeps_its_traceback() -> None:
    done = stage("assert not 'possible'")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "ERROR: " not in done.stderr


def test_what_a_file_smuggles_into_a_message_does_not_reach_the_terminal() -> None:
    done = stage("raise StageError('tensor \\x1b[31m\\x07 is in no file')")
    assert done.stderr.strip().isprintable()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a process with its parent")
def test_a_stage_dies_with_the_process_that_started_it() -> None:
    # The stage holds the pipe: it closes when both it and its parent are dead, and not for a minute otherwise.
    child = f"{PREAMBLE}    print('started', flush=True); time.sleep(60)\nrun_stage(main)"
    parent = f"""
import os, signal, subprocess, sys
stage = subprocess.Popen([sys.executable, "-c", {child!r}], stdout=subprocess.PIPE, stderr=sys.stdout)
stage.stdout.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", parent], cwd=ROOT, capture_output=True, check=False, timeout=30)
    assert done.returncode == -9
