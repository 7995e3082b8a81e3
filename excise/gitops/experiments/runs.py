"""A file of experiments: all on this machine, through DVC's queue, or each on one of many machines, which pushes it to
the git origin and its data to the DVC remote."""

import contextlib
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from excise.gitops.experiments.tables import PARAMS, check_document, is_of, tabulate
from excise.gitops.git import answer, file_of, git
from excise.gitops.lock import LOCK
from excise.gitops.programs import environment, first_error, run, run_or_fail
from excise.gitops.storage import fetch_outputs, push_outputs
from excise.plumbing.errors import StageError
from excise.plumbing.files import write_bytes
from excise.plumbing.private import dvc
from excise.plumbing.private.dvc_remote import require_remote
from schemas.experiments import Planned, load

ORIGIN = "origin"
TARGET = "evaluate@ablated"
"""The stage whose results the tables show; what it does not need, such as the report, is not run."""

_HERE = Path()
_ASIDE = Path(".dvc/tmp/excise")
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_START = 30.0
_MOST_LOOKS_UNSEEN = 10
_TRIES = 5
_LOCKED = ("is busy", "acquire lock")
_DONE = ("Success", "Failed")


def run_experiments(path: Path, jobs: int) -> None:
    """Run a file of experiments, `jobs` at once, and write tables of their results into its document; leaves with exit
    code 1 if one failed. The first of each group makes what the others share. Raises `ParamsError` before any runs."""
    file, groups = load(path, PARAMS)
    check_document(file, path)
    baseline = head()
    names = [each.name for group in groups for each in group]
    numbers = itertools.count(1)

    def finished(name: str) -> None:
        print(f"{next(numbers)} of {len(names)}: {name}", flush=True)

    make_room(names, baseline)
    try:
        with starting_from(None):
            for first, *_ in groups:
                queue(first)
        wait([first.name for first, *_ in groups], jobs, finished)
        for first, *others in groups:
            with starting_from(reference(baseline, first.name)):
                for each in others:
                    queue(each)
        wait([each.name for _, *others in groups for each in others], jobs, finished)
    except BaseException:
        _withdraw(names)
        raise
    tabulate(file, path, groups, {name: reference(baseline, name) for name in names}, failure)


def head() -> str:
    """The commit that experiments are derived from."""
    return git(_HERE, "rev-parse", "HEAD").strip()


def reference(baseline: str, name: str) -> str:
    """The git reference of an experiment that ran."""
    return f"refs/exps/{baseline[:2]}/{baseline[2:]}/{name}"


def command_for(experiment: Planned, *options: str) -> list[str]:
    """What runs an experiment as far as the tables need it."""
    overrides = [part for argument in experiment.arguments for part in ("--set-param", argument)]
    return ["dvc", "exp", "run", *options, "--name", experiment.name, *overrides, TARGET]


def make_room(names: Collection[str], baseline: str) -> None:
    """Remove earlier experiments of these names. Raises `StageError` where one of them is running."""
    while states := _states(names):
        if running := sorted(name for name, state in states.items() if state == "Running"):
            raise StageError(f"{running[0]} is still running; wait for it, or end it: `dvc queue kill {running[0]}`")
        run_or_fail("dvc", "queue", "remove", *states)
    if earlier := [name for name in names if answer(_HERE, "rev-parse", "--verify", reference(baseline, name))]:
        run_or_fail("dvc", "exp", "remove", *earlier)


@contextlib.contextmanager
def starting_from(revision: str | None) -> Iterator[None]:
    """Within the block dvc.lock is another commit's, if one is given, so that what that one made is up to date: DVC's
    cache of runs does not serve `organism`. And what later stages wrote into git is not there, as an experiment's
    commit would show it, though nothing in it made that."""
    theirs = file_of(_HERE, revision, LOCK) if revision else None
    _, later = dvc.what_runs(_HERE, TARGET)
    _ASIDE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_ASIDE) as aside, contextlib.ExitStack() as stack:
        for number, path in enumerate(filter(Path.exists, later)):
            kept = Path(aside) / str(number)
            path.rename(kept)
            stack.callback(_put_back, kept, path)
        if theirs is not None and Path(LOCK).is_file():
            stack.callback(write_bytes, Path(LOCK), Path(LOCK).read_bytes())
            write_bytes(Path(LOCK), theirs.encode())
        yield


def _put_back(kept: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)  # git removes folders in which nothing is left
    kept.rename(path)


def queue(experiment: Planned) -> None:
    """Queue one experiment of the workspace as it is."""
    for tries_left in reversed(range(_TRIES)):
        try:
            run_or_fail(*command_for(experiment, "--queue"))
            return
        except StageError as error:
            # A worker that takes an experiment out of the queue locks it for a moment, and DVC does not wait.
            if tries_left == 0 or not any(words in str(error) for words in _LOCKED):
                raise
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def wait(names: Collection[str], jobs: int, finished: Callable[[str], None]) -> None:
    """Have workers run the queue until these experiments are done; calls `finished` for each. Workers end themselves
    after ten idle seconds, perhaps just as something is queued, and are then started again."""
    waiting = set(names)
    unseen = dict.fromkeys(names, 0)
    started = -math.inf
    while waiting:
        try:
            states = _states(waiting)
        except (StageError, OSError):  # looked while a worker was moving a task from one list to another
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
            run_or_fail("dvc", "queue", "start", "--jobs", str(jobs))
        if started == -math.inf or not idle:
            started = time.monotonic()
        time.sleep(_SECONDS_BETWEEN_LOOKS if waiting else 0)


def _withdraw(names: Collection[str]) -> None:
    """Take these experiments out of the queue, and end those that run."""
    states = _states(names)
    for state, end in (("Queued", "remove"), ("Running", "kill")):
        if found := [name for name in states if states[name] == state]:
            run(["dvc", "queue", end, *found], _HERE)


def failure(name: str) -> str:
    """Why an experiment failed: the first error that its log holds, the stage's own."""
    log = run(["dvc", "queue", "logs", name], _HERE).output
    return first_error(log) or "its log holds no error: `dvc queue logs` it"


def _states(names: Collection[str]) -> dict[str, str]:
    # `dvc queue status` would take a tenth of a core. Of several states of a name, the one that hinders most counts.
    order = ("Running", "Queued", *_DONE)
    known = sorted(dvc.queued(_HERE), key=lambda pair: -order.index(pair[1]))
    return {name: state for name, state in known if name in names}


def sizes(path: Path) -> tuple[int, int]:
    """How many experiments of a file run before the others, and how many it has."""
    _, groups = load(path, PARAMS)
    return len(groups), sum(map(len, groups))


def run_experiment(path: Path, number: int) -> None:
    """Run the experiment of a number, from 1 on in the order of `in_order`, in this clone and push it, unless it is at
    the origin. Raises `StageError` where there is no such experiment, it fails, or it cannot be pushed."""
    _, groups = load(path, PARAMS)
    ordered = in_order(groups)
    if not 1 <= number <= len(ordered):
        raise StageError(f"{path} has the experiments 1 to {len(ordered)}, and no number {number}")
    experiment, first = ordered[number - 1]
    baseline = _committed()
    there = _fetch({experiment.name, first.name}, baseline)
    if experiment.name in there and is_of(there[experiment.name], experiment):
        print(f"{experiment.name}: already at {ORIGIN}")
        return
    with dvc.opened(_HERE, wrong="a DVC remote is where machines share their data") as repo:
        require_remote(repo)
    if experiment is not first and first.name not in there:
        print(f"{first.name} is not at {ORIGIN}: what it would have made is made here", flush=True)
    make_room([experiment.name], baseline)
    with starting_from(there.get(first.name, baseline)):
        with dvc.opened(_HERE) as repo:
            fetch_outputs(repo)  # not `--pull`, which checks nothing that it takes from the remote
        unbuffered = {**environment(), "PYTHONUNBUFFERED": "1"}
        done = run(command_for(experiment, "--temp"), _HERE, unbuffered, shown=True)
    if done.code != 0:
        raise StageError(f"{experiment.name}: {done.error}")
    push_experiment(experiment.name, baseline)
    print(f"{experiment.name}: pushed to {ORIGIN}")


def collect(path: Path) -> None:
    """Fetch the experiments of a file that other machines ran from this commit, and write tables of their results into
    its document; leaves with exit code 1 if some are missing. Raises `StageError` where all are."""
    file, groups = load(path, PARAMS)
    check_document(file, path)
    baseline = head()
    there = _fetch([each.name for group in groups for each in group], baseline)
    if not there:
        what = f"{ORIGIN} has no experiment of {path} that started from {baseline[:10]}"
        raise StageError(f"{what}; check out the commit that they did start from")
    missing = f"is not at {ORIGIN}: it failed or did not run yet, as the log of its job says"
    tabulate(file, path, groups, there, lambda _: missing)


def in_order(groups: Sequence[Sequence[Planned]]) -> list[tuple[Planned, Planned]]:
    """Every experiment with the first one of its group, in the order in which they may run."""
    firsts = [(first, first) for first, *_ in groups]
    return firsts + [(each, first) for first, *others in groups for each in others]


def _committed() -> str:
    """The commit that is checked out; what a killed run changed (`starting_from`) is put back first."""
    _, others = dvc.what_runs(_HERE, TARGET)
    aside = git(_HERE, "ls-files", "--deleted", "--", *map(str, others)).splitlines() if others else []
    if aside:
        git(_HERE, "checkout", "--quiet", "HEAD", "--", LOCK, *aside)
    if changed := git(_HERE, "diff", "--name-only", "HEAD", "--", ".", f":!{LOCK}").splitlines():
        what = "commit them first: experiments of many machines start from a commit"
        raise StageError(f"{changed[0]} has changes; {what}")
    return head()


def _fetch(names: Collection[str], baseline: str) -> dict[str, str]:
    """Fetch those of these experiments that the origin has; their names and git references."""
    if answer(_HERE, "remote", "get-url", ORIGIN) is None:
        raise StageError(f"this clone has no git remote called {ORIGIN}, where machines share their experiments")
    listed = answer(_HERE, "ls-remote", ORIGIN, reference(baseline, "*"))
    if listed is None:
        raise StageError(f"{ORIGIN} cannot be reached; `git ls-remote {ORIGIN}` says why")
    there = {line.partition("\t")[2] for line in listed.splitlines()}
    found = {name: reference(baseline, name) for name in names if reference(baseline, name) in there}
    if found:
        # The plus replaces: two machines may have run one experiment, and what is at the origin counts.
        git(_HERE, "fetch", "--quiet", ORIGIN, *(f"+{name}:{name}" for name in found.values()))
    return found


def push_experiment(name: str, baseline: str) -> None:
    """Push an experiment that ran here: its data first, so that what is at the origin is whole. Raises `StageError`,
    before anything is pushed, where the cache lacks some of it, or has other bytes than were recorded."""
    commit = git(_HERE, "rev-parse", reference(baseline, name)).strip()
    stages, _ = dvc.what_runs(_HERE, TARGET)
    with dvc.at_commit(_HERE, commit, with_remote=True) as repo:
        made = [output for output in dvc.outputs(repo) if output.pushed and output.stage in stages]
        if lost := next((output for output in made if output.lacking), None):
            raise StageError(f"{name} ran, but DVC did not keep {lost.name} in its cache: is the disk full?")
        push_outputs(repo, stages, again=f"another run of {name}")
    run_or_fail("dvc", "exp", "push", "--force", "--no-cache", ORIGIN, reference(baseline, name))
