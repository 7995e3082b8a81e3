"""How a process of ours begins and how it is stopped, and whose code and packages it may run. Only the standard library
is imported: this runs before any import that takes seconds."""

import contextlib
import ctypes
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType

ROOT = Path(__file__).resolve().parents[2]
"""The project whose code this is."""
PINS = ROOT / "requirements-compute.lock"
"""The packages that compute results, each with its version."""
UNPINNED = "EXCISE_UNPINNED"
"""The environment variable that lets stages run with other versions than the pinned ones."""

_PACKAGES = ("excise", "schemas", "stages")
_PR_SET_PDEATHSIG = 1
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SETTINGS = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",  # its warnings hold addresses, which may be signed
    # It keeps what it compiled for each shape, and each expert has another number of tokens in each layer: by default
    # that takes some hundred megabytes, where processors multiply bfloat16.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Keeps `dvc repro` readable, and memory bounded."""


class Stopped(KeyboardInterrupt):
    """A signal told this process to stop."""

    def __init__(self, number: int) -> None:
        self.number = number


def begin() -> None:
    """Prepare this process, before slow imports: it dies with DVC or make, and libraries are quiet and modest."""
    parent, is_stage = os.getppid(), "DVC_STAGE" in os.environ
    # Where DVC died before this line, the system's first process, of another group, has inherited its stage.
    if is_stage and (parent == 1 or _program(parent) == "systemd") and os.getpgid(parent) != os.getpgrp():
        os.kill(os.getpid(), signal.SIGKILL)
    # A command that a person starts, perhaps under nohup, outlives their shell.
    if is_stage or _program(parent) in ("make", "gmake"):
        die_with(parent)
    sys.excepthook = _explain
    for name, value in _SETTINGS.items():  # libraries read them when they are imported; the user's own values win
        os.environ.setdefault(name, value)


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies; on Linux only."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the request was in place
        os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP interrupt as Ctrl-C does; signals during the cleanup are ignored."""
    before = {number: signal.getsignal(number) for number in _STOPS}
    heeded = [number for number, handler in before.items() if handler != signal.SIG_IGN]  # as under nohup

    def stop(number: int, _frame: FrameType | None) -> None:
        for each in heeded:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    for number in heeded:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, before[number])


def foreign_code() -> str | None:
    """Why this code may not run here, or None: it is not that of the project in the current folder, as where excise is
    installed, and would be recorded with that project's results."""
    here, code = Path.cwd(), ("schemas/__init__.py", "stages/__init__.py")
    around = [folder for folder in (here, *here.parents) if all((folder / path).is_file() for path in code)]
    if not around:
        return None
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        place = Path(spec.origin).resolve().parents[1] if spec is not None and spec.origin else None
        if place != around[0]:
            what = f"the package {name} is that of {place}, and the project here is {around[0]}"
            remedy = "unset PYTHONPATH and PYTHONSAFEPATH, and uninstall excise where pip has installed it"
            return f"{what}, whose own code must run; {remedy}"
    return None


def other_versions() -> str | None:
    """Which installed package has another version than is pinned, or None, as where EXCISE_UNPINNED=1 allows it. Local
    parts of versions, such as `+cu128`, do not count."""
    if os.environ.get(UNPINNED) == "1" or not PINS.is_file():
        return None
    from importlib import metadata  # commands need neither

    from packaging.requirements import Requirement

    for line in PINS.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker is not None and not pin.marker.evaluate():
            continue  # one for other machines
        try:
            installed = metadata.version(pin.name)
        except metadata.PackageNotFoundError:
            installed = ""
        if not (installed and pin.specifier.contains(installed)):
            there = f"installed as {installed}" if installed else "not installed"
            return (
                f"{pin.name} is {there}, and {PINS.name} pins {str(pin.specifier)[2:]}: results may differ; `rm -f "
                f".venv/requirements.lock; make environment` installs it again, {UNPINNED}=1 uses what is installed"
            )
    return None


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
    if not missing or missing in _PACKAGES:
        sys.__excepthook__(kind, error, trace)
        return
    print(
        f"ERROR: the package {missing} is not installed for {sys.executable}; run `make repro`, which uses the "
        "environment in .venv, or activate that first: `source .venv/bin/activate`",
        file=sys.stderr,
    )
