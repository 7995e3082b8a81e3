"""What is wrong with this clone and this machine, each with what mends it. It only looks."""

from collections.abc import Collection, Iterator
from pathlib import Path

from excise.gitops.checks import data, machine, runner
from excise.gitops.checks.findings import Check, Clone, Finding, wrong
from excise.plumbing.errors import StageError
from schemas.wording import ParamsError

CHECKS: dict[str, Check] = {
    "python": machine.python,
    "packages": machine.packages,
    "git": machine.git,
    "dvc.yaml": machine.pipeline,
    "dvc.lock": machine.lock,
    "dvc": machine.settings,
    "cache": data.cache,
    "objects": data.objects,
    "leftovers": data.leftovers,
    "remote": data.remote,
    "disk": machine.disk,
    "secrets": runner.secrets,
    "hook": runner.hook,
    "github": runner.github,
}
"""In their order, each by the word that its lines begin with."""


def examine(folder: Path, deep: bool, only: Collection[str] = ()) -> None:
    """Print a line for each finding of all checks, or of `only` these. Raises `StageError` where something is wrong."""
    if unknown := [name for name in only if name not in CHECKS]:
        raise StageError(f"there is no check {unknown[0]}; there are {', '.join(CHECKS)}")
    failed: set[str] = set()
    clone = Clone(folder, deep)
    for name in only or CHECKS:
        for finding in _findings(CHECKS[name], clone):
            if finding.text in failed:
                continue  # what DVC cannot read stops several checks
            if finding.mark == "WRONG":
                failed.add(finding.text)
            print(f"{finding.mark:<5}  {name}: {' '.join(finding.text.split())}", flush=True)
    if failed:
        are = "is" if len(failed) == 1 else "are"
        raise StageError(f"{len(failed)} of these lines {are} WRONG; each says what mends it")


def _findings(check: Check, clone: Clone) -> Iterator[Finding]:
    try:
        yield from check(clone)
    except (StageError, ParamsError) as error:
        yield Finding("WRONG", str(error))
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        yield wrong(f"{error.strerror or error}{where}", "see whose it is (`ls -ld`), and whether the disk is whole")
