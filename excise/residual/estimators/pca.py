from typing import TYPE_CHECKING

from excise.residual.estimators import Estimator

if TYPE_CHECKING:
    from torch import Tensor


class Pca(Estimator):
    """The first principal component of harmful activations around the harmless mean, as in Zou et al. 2023
    (arXiv:2310.01405); its sign and norm are those of the difference of means."""

    def difference(self, harmful: "Tensor", harmless: "Tensor", means: "Tensor") -> "Tensor":
        import torch

        component = torch.linalg.svd(harmful - harmless.mean(dim=0), full_matrices=False).Vh[0]
        return component * (component @ means).sign() * means.norm()
