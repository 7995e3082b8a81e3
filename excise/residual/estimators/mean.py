from typing import TYPE_CHECKING, ClassVar

from excise.residual.estimators import Estimator

if TYPE_CHECKING:
    from torch import Tensor


class Mean(Estimator):
    """The difference of means (Arditi et al. 2024, arXiv:2406.11717, section 2.3)."""

    halvings: ClassVar[int] = 100

    def difference(self, harmful: "Tensor", harmless: "Tensor", means: "Tensor") -> "Tensor":
        return means
