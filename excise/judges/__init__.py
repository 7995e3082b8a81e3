"""Judges: each file is one, found by its name in params.yaml (`evaluate.judge`)."""

from abc import abstractmethod
from collections.abc import Callable, Sequence

from schemas.extensions import Extension
from schemas.results import Verdict

Judgment = Callable[[Sequence[tuple[str, str]]], list[Verdict]]
"""Judges pairs of a prompt and the final part of its response; verdicts come in the same order."""

Scoring = Callable[[Sequence[tuple[str, str]]], list[float]]
"""Scores, from 0 to 1, how well such pairs answer their prompts; scores come in the same order."""


class Judge(Extension):
    """Decides whether answers are refusals. Its fields are its parameters in params.yaml."""

    @abstractmethod
    def load(self) -> Judgment:
        """Load what judging needs, before any answer is judged. Raises `StageError`: something is missing."""

    def load_scoring(self) -> Scoring | None:
        """The same for what scores answers besides; None if this judge gives no scores."""
        return None
