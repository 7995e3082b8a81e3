from typing import ClassVar

from excise.comparison.limits import Limit


class AtLeast(Limit):
    """The edited model's value may not be below this."""

    words: ClassVar[str] = "at least"
    above: ClassVar[bool] = True
