"""The refusal direction between two sets of activations, by three estimators.

The difference of means is Arditi et al. 2024's (arXiv:2406.11717, section 2.3). The geometric median is the point with
the smallest sum of distances (Weiszfeld 1937): single prompts pull it less. The first principal component of the
harmful activations, seen from the harmless mean, is in the manner of Zou et al. 2023 (arXiv:2310.01405); its sign is
that of the means.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from excise.edit.projectors import Directions
from schemas.params.directions import Estimator

# Below this share of the stream's own norm a difference is what rounding leaves of two equal means.
SMALLEST_RELATIVE_NORM = 1e-6
_MEDIAN_STEPS = 200
_MEDIAN_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Estimate(Directions):
    """Directions with what they were estimated from; ``[measurements, hidden]`` float64."""

    harmful_mean: Tensor
    norms: Tensor
    """``[measurements]``: the length of what was normalised, in the units of the stream."""


def estimate(harmful: Tensor, harmless: Tensor, estimator: Estimator = "mean") -> Estimate:
    """The direction of each measurement, harmful minus harmless.

    Args:
        harmful: ``[prompts, measurements, hidden]``, any float type; everything is computed in float64.
        harmless: the same with as many prompts as it has.
    """
    a, b = harmful.double(), harmless.double()
    harmful_mean, harmless_mean = a.mean(dim=0), b.mean(dim=0)
    means = harmful_mean - harmless_mean
    scales = (harmful_mean.norm(dim=-1) + harmless_mean.norm(dim=-1)) / 2

    unit, norms = torch.zeros_like(means), torch.zeros_like(scales)
    reasons: list[str | None] = []
    for measurement, (difference, scale) in enumerate(zip(means, scales.tolist(), strict=True)):
        if not bool(torch.isfinite(difference).all()):
            reasons.append("the activations are not finite")
        elif float(difference.norm()) <= SMALLEST_RELATIVE_NORM * scale:
            reasons.append("harmful and harmless prompts have the same activations here")
        else:
            found = _difference(a[:, measurement], b[:, measurement], difference, estimator)
            reasons.append(None)
            norms[measurement] = found.norm()
            unit[measurement] = found / norms[measurement]
    return Estimate(unit, harmless_mean, tuple(reasons), harmful_mean, norms)


def winsorize(activations: Tensor, quantile: float) -> Tensor:
    """Clamp each activation vector ``[..., hidden]`` to the quantile of its own magnitudes.

    A massive activation, which some models have in a channel or two whatever the prompt, then no longer outweighs the
    rest.
    """
    # Not torch.quantile, which refuses long vectors.
    place = max(0, -int(-quantile * activations.shape[-1] // 1) - 1)
    limit = activations.abs().sort(dim=-1).values[..., place, None]
    return activations.clamp(-limit, limit)


def _difference(harmful: Tensor, harmless: Tensor, means: Tensor, estimator: Estimator) -> Tensor:
    if estimator == "median":
        return geometric_median(harmful) - geometric_median(harmless)
    if estimator == "pca":
        component = torch.linalg.svd(harmful - harmless.mean(dim=0), full_matrices=False).Vh[0]
        return component * (component @ means).sign() * means.norm()
    return means


def geometric_median(points: Tensor) -> Tensor:
    """The point with the smallest sum of distances to ``[points, hidden]``, float64, by Weiszfeld's iteration."""
    median = points.mean(dim=0)
    for _ in range(_MEDIAN_STEPS):
        distances = (points - median).norm(dim=-1)
        # A point that the iterate has met would get an infinite weight; it keeps it close, not caught.
        weights = 1 / distances.clamp(min=_MEDIAN_TOLERANCE * (1 + float(median.norm())))
        moved = (weights[:, None] * points).sum(dim=0) / weights.sum()
        if float((moved - median).norm()) <= _MEDIAN_TOLERANCE * (1 + float(median.norm())):
            return moved
        median = moved
    return median
