"""Python, its packages, git, the pipeline's own files, and the disk."""

import os
import resource
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from excise.gitops.checks.findings import Clone, Finding, good, note, same_bytes, unless_wrong, wrong
from excise.gitops.git import answer
from excise.gitops.lock import LOCK, MODEL, read_lock
from excise.gitops.trees import REQUIREMENTS
from excise.plumbing import dependencies
from excise.plumbing.graph import GRAPH
from excise.plumbing.process import UNPINNED, other_versions
from schemas.basis.text import listed

_COMMITTED = (GRAPH.name, LOCK, "params.yaml", "metrics.json", "gates.json")
_LEAST_FILES = 1024


def python(clone: Clone) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    own = clone.folder.resolve() / ".venv"
    if Path(sys.prefix).resolve() != own.resolve():
        yield note(f"Python {version} of {sys.prefix}, and not of {own}, which `make doctor` would take")
    else:
        yield good(f"Python {version} of {own}")
        if not same_bytes(own / REQUIREMENTS, clone.folder / REQUIREMENTS):
            yield wrong(f".venv was made from another {REQUIREMENTS} than this one", "run `make environment`")


def packages(clone: Clone) -> Iterator[Finding]:
    if os.environ.get(UNPINNED) == "1":
        yield note(f"{UNPINNED}=1 lets stages run with any versions, so results may differ; `unset {UNPINNED}`")
    elif difference := other_versions():
        yield Finding("WRONG", difference)
    lines = (clone.folder / REQUIREMENTS).read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line.rstrip(" \\")) for line in lines if line and not line.startswith(("#", " ", "-"))]
    others = [pin.name for pin in pins if (pin.marker is None or pin.marker.evaluate()) and not _is_installed(pin)]
    if others:
        yield wrong(
            f"{REQUIREMENTS} pins other versions than are installed of {listed(others)}",
            f"`rm -f .venv/{REQUIREMENTS}; make environment` installs the pinned ones",
        )
    else:
        yield good(f"{len(pins)} packages are those of {REQUIREMENTS}")


def _is_installed(pin: Requirement) -> bool:
    try:
        return pin.specifier.contains(metadata.version(pin.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


def git(clone: Clone) -> Iterator[Finding]:
    if answer(clone.folder, "rev-parse", "--git-dir") is None:
        yield wrong("this is no git repository, or git is not installed", "clone the repository, do not copy its files")
        return
    commit = (answer(clone.folder, "rev-parse", "--short=12", "HEAD") or "no commit").strip()
    yield from unless_wrong(_git_state(clone), f"at {commit}, and nothing is in progress")


def _git_state(clone: Clone) -> Iterator[Finding]:
    if answer(clone.folder, "var", "GIT_COMMITTER_IDENT") is None and not clone.is_on_runner:
        remedy = "`git config user.name NAME` and `git config user.email ADDRESS`"
        yield wrong("git does not know who commits", remedy)
    state = Path((answer(clone.folder, "rev-parse", "--absolute-git-dir") or "").strip())
    for file, what in (("MERGE_HEAD", "merge"), ("rebase-merge", "rebase"), ("rebase-apply", "rebase")):
        if (state / file).exists():
            yield wrong(f"a {what} is in progress", f"`git {what} --continue` ends it, `git {what} --abort` undoes it")
    names = [name for name in _COMMITTED if (clone.folder / name).is_file()]
    if marked := (answer(clone.folder, "grep", "-l", "-E", "^(<<<<<<<|>>>>>>>) ", "--", *names) or "").split():
        remedy = "docs/runner.md (When something goes wrong) says how to resolve them"
        yield wrong(f"{listed(marked)} {'has' if len(marked) == 1 else 'have'} conflict markers", remedy)


def pipeline(clone: Clone) -> Iterator[Finding]:
    dependencies.check()
    yield good("dvc.yaml names what the code depends on")


def lock(clone: Clone) -> Iterator[Finding]:
    path = clone.folder / LOCK
    if not path.is_file():
        yield note(f"there is no {LOCK}: nothing has run yet; `make repro` runs it")
        return
    lock = read_lock(path.read_text(encoding="utf-8", errors="replace"))
    yield good(f"{LOCK} records {len(lock.stages)} stages")


def settings(clone: Clone) -> Iterator[Finding]:
    assert clone.data
    yield good("DVC reads dvc.yaml and .dvc/config")


def disk(clone: Clone) -> Iterator[Finding]:
    sizes = {output.name: output.size or 0 for output in clone.outputs}
    size = sizes.get(MODEL) or sizes.get("models/base") or 0
    free = shutil.disk_usage(clone.folder).free
    if free < size:
        what = f"{_mb(free)} are free, and one edited model takes {_mb(size)}"
        yield wrong(what, "docs/runner.md (Disk) says what can go")
    else:
        yield good(f"{_mb(free)} are free; one edited model takes {_mb(size) if size else 'as much as its base'}")
    yield from unless_wrong(_limits(size), "no limit of this process is too low")


def _limits(size: int) -> Iterator[Finding]:
    for name, least, option in (("FSIZE", size, "-f"), ("DATA", size, "-d"), ("AS", size, "-v")):
        soft = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0]
        if soft != resource.RLIM_INFINITY and soft < least:
            yield wrong(f"the limit RLIMIT_{name} is {_mb(soft)}, less than a model", f"`ulimit {option} unlimited`")
    if (files := resource.getrlimit(resource.RLIMIT_NOFILE)[0]) < _LEAST_FILES:
        yield wrong(f"this process may open {files} files at once (RLIMIT_NOFILE)", "`ulimit -n 4096`")


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
