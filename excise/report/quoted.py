"""Text that anybody may have written, as Markdown that shows it and does nothing else.

GitHub makes nothing of what stands in code: no HTML, link, picture, mention of a person or reference to an issue. So
such text stands in code alone, cut, and without what could end it.
"""

import re

from excise.report.inert import inert
from schemas.text import printable, shorten

MOST_IN_LINE = 120
MOST_IN_SENTENCE = 240
MOST_IN_BLOCK = 600
"""So many characters of a text are shown."""

_ENDS = str.maketrans({"`": r"\x60", "|": r"\x7c"})
"""What would end a code span, or the table cell that it stands in."""

_PLAIN = re.compile(
    r"(?:(?![0-9a-fA-F]{7})[A-Za-z]{1,20}|-?(?:[0-9]{1,6}(?:\.[0-9]{1,8})?|nan|inf)(?:e[+-][0-9]{1,3})?)[,;:.]?",
    re.ASCII,
)
"""A word or a number that means nothing to GitHub; a commit's name would."""


def held(text: str, most: int = MOST_IN_LINE) -> str:
    """The text on one line, with nothing in it that ends a code span or a table cell; never empty."""
    return shorten(printable(text[: most + 1]).translate(_ENDS), most) or " "


def span(text: str, most: int = MOST_IN_LINE) -> str:
    """The text as a code span on one line, also for a cell of a table."""
    return f"`{held(text, most)}`"


def metric(name: str) -> str:
    """A metric's name as `held` gives it, its task and its own name each cut by itself, so that both can be told."""
    task, _, own = name.rpartition(".")
    return f"{held(task, 2 * MOST_IN_LINE // 3)}.{held(own, MOST_IN_LINE // 3)}"


def prose(text: str) -> str:
    """A sentence of plain words and numbers as it is; anything else as a code span."""
    plain = len(text) <= MOST_IN_SENTENCE and all(_PLAIN.fullmatch(word) for word in text.split(" "))
    return text if plain else span(text, MOST_IN_SENTENCE)


def block(text: str, most: int = MOST_IN_BLOCK) -> str:
    """The beginning of a text as a fenced block, whose fence is longer than any within."""
    shown = shorten(inert(text[: most + 1]), most)
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", shown)), default=0))
    return f"{fence}text\n{shown}\n{fence}"
