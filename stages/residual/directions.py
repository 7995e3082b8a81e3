"""The refusal direction: the difference of two means (Arditi et al. 2024, arXiv:2406.11717, section 2.3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Below this share of the stream's own norm a difference is what rounding leaves of two equal means.
SMALLEST_RELATIVE_NORM = 1e-6


@dataclass(frozen=True)
class Directions:
    """Two means and the unit vector between them, for each measurement; all ``[measurements, hidden]`` float64."""

    harmful_mean: Tensor
    harmless_mean: Tensor
    unit: Tensor
    """Rows of zeros where there is no direction."""
    reasons: tuple[str | None, ...]
    """Why there is none, for each measurement; None where there is one."""


def difference_of_means(harmful: Tensor, harmless: Tensor) -> Directions:
    """Harmful minus harmless, normalised, at each measurement.

    Args:
        harmful: ``[prompts, measurements, hidden]``, any float type; means are taken in float64.
        harmless: the same with as many prompts as it has.
    """
    harmful_mean, harmless_mean = harmful.double().mean(dim=0), harmless.double().mean(dim=0)
    difference = harmful_mean - harmless_mean
    norms = difference.norm(dim=-1)
    scales = (harmful_mean.norm(dim=-1) + harmless_mean.norm(dim=-1)) / 2

    unit = torch.zeros_like(difference)
    reasons: list[str | None] = []
    for measurement, (norm, scale) in enumerate(zip(norms.tolist(), scales.tolist(), strict=True)):
        if not bool(torch.isfinite(difference[measurement]).all()):
            reasons.append("the activations are not finite")
        elif norm <= SMALLEST_RELATIVE_NORM * scale:
            reasons.append("harmful and harmless prompts have the same activations here")
        else:
            reasons.append(None)
            unit[measurement] = difference[measurement] / norm
    return Directions(harmful_mean, harmless_mean, unit, tuple(reasons))
