"""What gates can limit: each file is one limit, found by its name in params.yaml (a key of `gates`)."""

from typing import TYPE_CHECKING, ClassVar

from schemas.basis.document import Number
from schemas.extensions import Extension

if TYPE_CHECKING:  # params.yaml is read without numpy and scipy
    from excise.comparison.comparison import Growing, Measured


class Limit(Extension):
    """A limit on one number that comes from a metric. Its fields are its parameters in params.yaml."""

    words: ClassVar[str]
    """What stands before the number, as in 'at most 0.05'."""
    of_both: ClassVar[bool] = False
    """Whether it compares the edited model with the base; `look_at` is then asked of metrics that have a difference."""
    above: ClassVar[bool] = False
    """Whether it keeps the number above `limit`, rather than below."""

    limit: Number
    """The number; one that has no other parameter is written `name: number`."""

    def look_at(self, metric: "Measured", confidence: float) -> tuple[float, "Growing | None"]:
        """The number that is limited, and its interval, None where there is no interval: the edited model's value."""
        return metric.ablated, metric.value_interval(metric.ablated_values, confidence)
