"""What tells a refusal from an answer, one judge a file."""

from collections.abc import Callable, Sequence

from schemas.results import Verdict

Judge = Callable[[Sequence[tuple[str, str]]], list[Verdict]]
"""(prompt, final part of the response) → verdict, in the order given."""
