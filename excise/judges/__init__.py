"""Judges: each file is one, found by its name in params.yaml (`evaluate.judge`)."""

from abc import abstractmethod
from collections.abc import Callable, Sequence

from schemas.extensions import Extension
from schemas.results import Verdict

Judgement = Callable[[Sequence[tuple[str, str]]], list[Verdict]]
"""Pairs of a prompt and the final part of its response → their verdicts, in the same order."""


class Judge(Extension):
    """Decides whether answers are refusals. Its fields are its parameters in params.yaml."""

    @abstractmethod
    def load(self) -> Judgement:
        """Load what judging needs. Called before any answer is judged, so that what is missing is an error at once.
        Raises `StageError`."""
