"""The pipeline, one short file a stage, and the rooms that they call. Python runs this file before any library's."""

import ctypes
import os
import signal
import sys
from pathlib import Path
from types import TracebackType

_PR_SET_PDEATHSIG = 1
_OURS = ("experiments", "schemas", "stages")


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies; on Linux only."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the request was in place
        os.kill(os.getpid(), signal.SIGKILL)


def _dvc_died() -> bool:
    """Whether DVC died before this line: then the system's first process, of another group, has inherited its stage."""
    parent = os.getppid()
    return (parent == 1 or _program(parent) == "systemd") and os.getpgid(parent) != os.getpgrp()


def _program(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """One line where the environment is not the project's, or somebody interrupts; all else keeps its traceback."""
    if issubclass(kind, KeyboardInterrupt):
        print("ERROR: interrupted; nothing was left half-written", file=sys.stderr)
        return
    missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if not missing or missing in _OURS:
        sys.__excepthook__(kind, error, trace)
        return
    print(
        f"ERROR: the package {missing} is not installed for {sys.executable}; run `make repro`, which uses the "
        "environment in .venv, or activate that first: `source .venv/bin/activate`",
        file=sys.stderr,
    )


# Before slow imports, in which a stage would outlive DVC. Only what DVC or make started dies with it: a command that a
# person starts, perhaps under nohup, outlives their shell.
if "DVC_STAGE" in os.environ and _dvc_died():
    os.kill(os.getpid(), signal.SIGKILL)
if "DVC_STAGE" in os.environ or _program(os.getppid()) in ("make", "gmake"):
    die_with(os.getppid())
sys.excepthook = _explain

# Keeps `dvc repro` readable; the libraries read these when they are imported, so they are set here. The user's own win.
for _name, _value in {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",  # its warnings hold addresses, which may be signed
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}.items():
    os.environ.setdefault(_name, _value)
