"""Limits of gates: each file is one, found by its name in params.yaml (a key of `gates`)."""

from typing import TYPE_CHECKING, ClassVar

from schemas.basis.document import Number
from schemas.extensions import Extension

if TYPE_CHECKING:  # params.yaml is read without numpy and scipy
    from excise.comparison.comparison import PairedMetric, ScaledInterval


class Limit(Extension):
    """A limit on one number that comes from a metric. Its fields are its parameters in params.yaml."""

    words: ClassVar[str]
    """Words before the number, as in 'at most 0.05'."""
    compares: ClassVar[bool] = False
    """Whether it compares the edited model with the base; `read` then receives only metrics with a difference."""
    above: ClassVar[bool] = False
    """Whether it keeps the number above `limit`, rather than below."""

    limit: Number
    """The number; a limit without other parameters is written `name: number`."""

    def read(self, metric: "PairedMetric", confidence: float) -> tuple[float, "ScaledInterval | None"]:
        """The number that is limited and its interval, if it has one; here the edited model's value."""
        return metric.ablated, metric.value_interval(metric.ablated_values, confidence)
