"""Where a report comes from: commit, what changed since the previous run, and what is installed.

No stage's output holds any of it, as each is a function of its declared inputs alone.
"""

import platform
from importlib import metadata
from pathlib import Path

from excise.gitops.difference import parameter_changes
from excise.gitops.git import answer, file_of
from schemas.evidence import ParameterChange, Provenance

PACKAGES = ("torch", "transformers", "lm-eval", "dvc", "numpy", "scipy", "safetensors")


def provenance(folder: Path) -> Provenance:
    """Of the project in a folder. In no git repository, or in one that knows nothing of the project, no commit."""
    commit = answer(folder, "rev-parse", "--verify", "--quiet", "HEAD")
    if commit is None or answer(folder, "cat-file", "-e", "HEAD:./params.yaml") is None:
        return Provenance(commit=None, changed_files=[], previous=None, parameters=[], versions=versions())
    previous = _previous(folder)
    return Provenance(
        commit=commit.strip(),
        changed_files=_changed_files(folder),
        previous=previous,
        parameters=[] if previous is None else _parameters(folder, previous),
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """Of Python and of the packages that results depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _previous(folder: Path) -> str | None:
    """The latest commit whose dvc.lock is another than the one that lies there."""
    current = (folder / "dvc.lock").read_bytes().decode(errors="replace") if (folder / "dvc.lock").is_file() else None
    wrote = answer(folder, "rev-list", "--first-parent", "HEAD", "--", "dvc.lock") or ""
    for candidate in ("HEAD", *(f"{commit}^" for commit in wrote.split())):
        there = file_of(folder, candidate, "dvc.lock")
        if there is not None and there != current:
            return (answer(folder, "rev-parse", candidate) or "").strip() or None
    return None


def _changed_files(folder: Path) -> list[str]:
    """Those of the working tree that differ from the commit, also such as git does not know yet."""
    listed = answer(folder, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", ".") or ""
    return sorted(entry[3:] for entry in listed.split("\0") if entry)


def _parameters(folder: Path, previous: str) -> list[ParameterChange]:
    before = file_of(folder, previous, "params.yaml")
    path = folder / "params.yaml"
    return parameter_changes(before, path.read_text(errors="replace")) if before is not None and path.is_file() else []
