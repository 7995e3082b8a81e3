"""What is looked at, and what is found: lines that are fine, or say what mends them."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from excise.plumbing.private.dvc import Output, Storage, opened, outputs, storage
from schemas.basis.text import shorten

SECONDS_TO_ANSWER = 20.0
"""What a remote gets, and GitHub."""

Mark = Literal["ok", "note", "WRONG"]


@dataclass(frozen=True)
class Finding:
    """One line."""

    mark: Mark
    text: str


Check = Callable[["Clone"], Iterator[Finding]]


def good(what: str) -> Finding:
    return Finding("ok", what)


def note(what: str) -> Finding:
    """What is not wrong, but good to know."""
    return Finding("note", what)


def wrong(what: str, remedy: str) -> Finding:
    return Finding("WRONG", f"{what}; {remedy}")


def unless_wrong(found: Iterable[Finding], what: str) -> Iterator[Finding]:
    """The same findings, and where none of them is wrong, that all is good."""
    marks = set()
    for finding in found:
        marks.add(finding.mark)
        yield finding
    if "WRONG" not in marks:
        yield good(what)


@dataclass(frozen=True)
class Clone:
    """What is looked at: the project in the current folder; `deep` also reads every object of the cache."""

    folder: Path
    deep: bool = False

    @cached_property
    def data(self) -> tuple[Storage, list[Output]]:
        """What DVC says of it. Raises `StageError` where DVC cannot read it."""
        with opened(self.folder) as repo:
            return storage(repo), list(outputs(repo))

    @property
    def storage(self) -> Storage:
        return self.data[0]

    @property
    def outputs(self) -> list[Output]:
        return self.data[1]

    @cached_property
    def runner(self) -> Path | None:
        """The folder of the runner whose workspace this is; None where it is nobody's."""
        around = (folder for folder in self.folder.resolve().parents if (folder / ".runner").is_file())
        return next(around, None)

    @property
    def is_on_runner(self) -> bool:
        """Whether jobs run here."""
        named = any(name == "GITHUB_ACTIONS" or name.startswith(("RUNNER_", "ACTIONS_RUNNER_")) for name in os.environ)
        return named or self.runner is not None


def same_bytes(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def left_behind(paths: Sequence[Path]) -> str:
    """The first of some files, and how many more there are."""
    more = f" and {len(paths) - 1} more" if paths[1:] else ""
    return f"{shorten(str(paths[0]), 160)}{more}"
