"""What tells a refusal from an answer, one judge a file."""

from collections.abc import Callable, Sequence

from schemas.basis.text import printable, shorten
from schemas.results import Verdict

Judge = Callable[[Sequence[tuple[str, str]]], list[Verdict]]
"""(prompt, final part of the response) → verdict, in the order given."""


def one_line(error: Exception, length: int) -> str:
    """What an error of somebody else's says, on one line."""
    return shorten(printable(" ".join(str(error).split())), length)
