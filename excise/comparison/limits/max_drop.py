from typing import TYPE_CHECKING, ClassVar

from excise.comparison.limits import Limit
from schemas.basis.document import Margin
from schemas.evidence import Interval

if TYPE_CHECKING:
    from excise.comparison.comparison import PairedMetric, ScaledInterval


class MaxDrop(Limit):
    """The edited model's value may not be below the base's by more than this."""

    words: ClassVar[str] = "drop of at most"
    compares: ClassVar[bool] = True

    limit: Margin
    """The number, not below 0."""

    def read(self, metric: "PairedMetric", confidence: float) -> tuple[float, "ScaledInterval | None"]:
        """Base minus edited."""
        assert metric.difference is not None
        rise = metric.difference_interval(confidence)
        if rise is None:
            return 0.0 - metric.difference, None

        def drop(times: float) -> Interval:
            interval = rise(times)
            return Interval(low=0.0 - interval.high, high=0.0 - interval.low)

        return 0.0 - metric.difference, drop
