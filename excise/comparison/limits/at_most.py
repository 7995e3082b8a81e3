from typing import ClassVar

from excise.comparison.limits import Limit


class AtMost(Limit):
    """The edited model's value may not be above this."""

    words: ClassVar[str] = "at most"
