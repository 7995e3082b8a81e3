"""DVC's queue of experiments, as far as a set of names goes: what others queued stays as it is.

Actions go through DVC's command line. The state of the queue is read through its Python interface, whose words
`dvc queue status` prints: a process for every look would take a tenth of a core.
"""

import contextlib
import math
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo

from excise.gitops.experiments.commands import first_error, output_of, overriding
from excise.gitops.git import answer, file_of
from excise.plumbing.errors import StageError
from excise.plumbing.files import write_bytes

LOCK = Path("dvc.lock")
_HERE = Path()
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_START = 30.0
_MOST_LOOKS_UNSEEN = 10
_TRIES = 5
_LOCKED = ("is busy", "acquire lock")
_DONE = ("Success", "Failed")


def head() -> str:
    """The commit that experiments are derived from."""
    return output_of("git", "rev-parse", "HEAD").strip()


def reference(baseline: str, name: str) -> str:
    """The git reference of an experiment that ran."""
    return f"refs/exps/{baseline[:2]}/{baseline[2:]}/{name}"


def make_room(names: Collection[str], baseline: str) -> None:
    """Remove what earlier runs of these names left in the queue and beside this commit.

    Raises:
        StageError: one of them runs at this moment.
    """
    while states := _states(names):
        if running := sorted(name for name, state in states.items() if state == "Running"):
            raise StageError(f"{running[0]} is still running; wait for it, or end it: `dvc queue kill {running[0]}`")
        output_of("dvc", "queue", "remove", *states)
    if earlier := [name for name in names if answer(_HERE, "rev-parse", "--verify", reference(baseline, name))]:
        output_of("dvc", "exp", "remove", *earlier)


def queue(name: str, arguments: Iterable[str]) -> None:
    """Queue one experiment of the workspace as it is, with overrides."""
    for tries_left in reversed(range(_TRIES)):
        try:
            output_of("dvc", "exp", "run", "--queue", "--name", name, *overriding(arguments))
            return
        except StageError as error:
            # A worker that takes an experiment out of the queue locks it for a moment, and DVC does not wait.
            if tries_left == 0 or not any(words in str(error) for words in _LOCKED):
                raise
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def wait(names: Collection[str], jobs: int, finished: Callable[[str], None]) -> None:
    """Have workers run the queue until these experiments are done; tells the name of each as it is.

    A worker that finds nothing to do for ten seconds ends itself, perhaps just as something is queued: where everything
    waits, workers are started anew.
    """
    waiting = set(names)
    unseen = dict.fromkeys(names, 0)
    started = -math.inf
    while waiting:
        try:
            states = _states(waiting)
        except (DvcException, OSError):  # looked while a worker was moving a task from one list to another
            states = {}
        for name in sorted(waiting):
            # For the same reason a task may be in neither list.
            unseen[name] = 0 if name in states else unseen[name] + 1
            if unseen[name] > _MOST_LOOKS_UNSEEN:
                raise StageError(f"{name} is gone from DVC's queue, and did not run")
            if states.get(name) in _DONE:
                waiting.discard(name)
                finished(name)
        idle = "Queued" in states.values() and "Running" not in states.values()
        if started == -math.inf or (idle and time.monotonic() - started > _SECONDS_TO_START):
            output_of("dvc", "queue", "start", "--jobs", str(jobs))
        if started == -math.inf or not idle:
            started = time.monotonic()
        time.sleep(_SECONDS_BETWEEN_LOOKS if waiting else 0)


def withdraw(names: Collection[str]) -> None:
    """Take these experiments out of the queue, and end those that run."""
    states = _states(names)
    if queued := [name for name, state in states.items() if state == "Queued"]:
        subprocess.run(["dvc", "queue", "remove", *queued], capture_output=True)
    if running := [name for name, state in states.items() if state == "Running"]:
        subprocess.run(["dvc", "queue", "kill", *running], capture_output=True)


def failure(name: str) -> str:
    """Why an experiment failed: the first error that its log holds, the stage's own."""
    logged = subprocess.run(["dvc", "queue", "logs", name], capture_output=True, text=True)
    return first_error(logged.stdout) or first_error(logged.stderr) or "its log holds no error: `dvc queue logs` it"


@contextlib.contextmanager
def starting_from(revision: str) -> Iterator[None]:
    """Within the block, dvc.lock is that of another experiment: what is queued finds what that one made up to date.

    DVC's cache of runs does not serve `prepare`, whose model outlives a rerun; without this every experiment with
    another organism than the workspace's would train it for itself.
    """
    theirs = file_of(_HERE, revision, str(LOCK))
    ours = LOCK.read_bytes() if LOCK.is_file() else None
    if theirs is None or ours is None:
        yield
        return
    try:
        write_bytes(LOCK, theirs.encode())
        yield
    finally:
        write_bytes(LOCK, ours)


def _states(names: Collection[str]) -> dict[str, str]:
    """What DVC says of these names; of one that it knows several times, what hinders most."""
    order = ("Running", "Queued", *_DONE)
    with Repo() as repo:
        known = [(task["name"], task["status"]) for task in repo.experiments.celery_queue.status()]
    states: dict[str, str] = {}
    for name, state in sorted(known, key=lambda pair: -order.index(pair[1])):
        if name in names:
            states[name] = state
    return states
