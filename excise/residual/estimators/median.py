from typing import TYPE_CHECKING

from excise.residual.estimators import Estimator

if TYPE_CHECKING:
    from torch import Tensor

_STEPS = 200
_TOLERANCE = 1e-12


class Median(Estimator):
    """The difference of geometric medians, which single prompts affect less than means."""

    def difference(self, harmful: "Tensor", harmless: "Tensor", means: "Tensor") -> "Tensor":
        return geometric_median(harmful) - geometric_median(harmless)


def geometric_median(points: "Tensor") -> "Tensor":
    """The point with the smallest sum of distances to `points` ``[points, hidden]`` float64, by Weiszfeld's method."""
    median = points.mean(dim=0)
    for _ in range(_STEPS):
        distances = (points - median).norm(dim=-1)
        # Without the clamp a point that the iterate meets would get an infinite weight.
        weights = 1 / distances.clamp(min=_TOLERANCE * (1 + float(median.norm())))
        moved = (weights[:, None] * points).sum(dim=0) / weights.sum()
        if float((moved - median).norm()) <= _TOLERANCE * (1 + float(median.norm())):
            return moved
        median = moved
    return median
