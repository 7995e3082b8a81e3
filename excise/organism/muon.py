"""Muon (Jordan et al. 2024): momentum whose update is made orthogonal, which learns in far fewer steps than AdamW.

torch's own computes in bfloat16, which takes most of the training time on a processor without such instructions."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

MOMENTUM = 0.95
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the polynomial that is iterated; its slope at 0 is large, so few iterations are enough."""
AS_ADAM = 0.2
"""Typical size of an entry in AdamW's updates, which the updates here are given too, so that learning rates compare
(Liu et al. 2025)."""
SMALLEST = 1e-7


class Muon(Optimizer):
    """For matrices ``[rows, columns]``."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter by its gradient; those of one shape at once."""
        for group in self.param_groups:
            for shape in dict.fromkeys(parameter.shape for parameter in group["params"]):
                alike = [parameter for parameter in group["params"] if parameter.shape == shape]
                updates = orthogonal(torch.stack([self._momentum(parameter) for parameter in alike]))
                updates *= -group["lr"] * AS_ADAM * max(shape) ** 0.5
                for parameter, update in zip(alike, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update)

    def _momentum(self, parameter: Tensor) -> Tensor:
        """The gradient that Nesterov's momentum makes of this one."""
        assert parameter.grad is not None
        mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
        return parameter.grad.lerp(mean.lerp_(parameter.grad, 1 - MOMENTUM), MOMENTUM)


def orthogonal(matrices: Tensor) -> Tensor:
    """Each matrix of ``[matrices, rows, columns]`` with all its singular values near 1, by Newton-Schulz iteration."""
    tall = matrices.shape[1] > matrices.shape[2]
    wide = matrices.mT if tall else matrices
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp_min(SMALLEST)
    linear, cubic, quintic = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = wide @ wide.mT
        higher = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
        wide = torch.baddbmm(wide, higher, wide, beta=linear)
    return wide.mT if tall else wide
