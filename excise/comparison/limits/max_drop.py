from typing import TYPE_CHECKING, ClassVar

from excise.comparison.limits.max_rise import MaxRise
from schemas.evidence import Interval

if TYPE_CHECKING:
    from excise.comparison.comparison import PairedMetric, ScaledInterval


class MaxDrop(MaxRise):
    """The edited model's value may not be below the base's by more than this."""

    words: ClassVar[str] = "drop of at most"

    def read(self, metric: "PairedMetric", confidence: float) -> tuple[float, "ScaledInterval | None"]:
        """Base minus edited."""
        difference, rise = super().read(metric, confidence)
        if rise is None:
            return 0.0 - difference, None

        def drop(times: float) -> Interval:
            interval = rise(times)
            return Interval(low=0.0 - interval.high, high=0.0 - interval.low)

        return 0.0 - difference, drop
