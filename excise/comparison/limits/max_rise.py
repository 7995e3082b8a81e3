from typing import TYPE_CHECKING, ClassVar

from excise.comparison.limits import Limit
from schemas.basis.document import Margin

if TYPE_CHECKING:
    from excise.comparison.comparison import PairedMetric, ScaledInterval


class MaxRise(Limit):
    """The edited model's value may not be above the base's by more than this."""

    words: ClassVar[str] = "rise of at most"
    compares: ClassVar[bool] = True

    limit: Margin
    """The number, not below 0."""

    def read(self, metric: "PairedMetric", confidence: float) -> tuple[float, "ScaledInterval | None"]:
        """Edited minus base."""
        assert metric.difference is not None
        return metric.difference, metric.difference_interval(confidence)
