"""The refusal direction between two sets of activations, and statistics that say how good it is."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from excise.edit.planning.projectors import Directions
from excise.residual.estimators import Estimator
from excise.residual.estimators.mean import Mean
from schemas.directions import DirectionStatistics, MeasurementStatistics

SMALLEST_RELATIVE_NORM = 1e-6
"""A smaller difference, relative to the stream's norm, is only rounding of two equal means."""
MEAN = Mean()


@dataclass(frozen=True)
class Estimate(Directions):
    """Directions with the mean of harmful activations, ``[measurements, hidden]`` float64."""

    harmful_mean: Tensor
    norms: Tensor
    """``[measurements]``: the norm before normalization, in the units of the stream."""


def estimate(harmful: Tensor, harmless: Tensor, estimator: Estimator = MEAN) -> Estimate:
    """The direction of each measurement, harmful minus harmless, from tensors ``[prompts, measurements, hidden]``."""
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
            estimated = estimator.difference(a[:, measurement], b[:, measurement], difference)
            assert estimated.shape == difference.shape, type(estimator)
            norm = float(estimated.norm())
            if not 0 < norm < math.inf:
                reasons.append("the estimator gives no direction here")
                continue
            reasons.append(None)
            norms[measurement] = norm
            unit[measurement] = estimated / norm
    return Estimate(unit, harmless_mean, tuple(reasons), harmful_mean, norms)


def winsorize(activations: Tensor, quantile: float) -> Tensor:
    """Clamp each vector ``[..., hidden]`` to a quantile of its magnitudes, so that massive activations weigh less."""
    # Not torch.quantile, which rejects long vectors.
    index = max(0, -int(-quantile * activations.shape[-1] // 1) - 1)
    limit = activations.abs().sort(dim=-1).values[..., index, None]
    return activations.clamp(-limit, limit)


LOW_STABILITY, LOW_AUROC, MASSIVE = 0.8, 0.7, 0.5
"""Limits of warnings: cosine between halves, separation of held-out prompts, one channel's share of the square."""


def describe(directions: Estimate, harmful: Tensor, harmless: Tensor, estimator: Estimator) -> DirectionStatistics:
    """Statistics of each measurement, from the activations that `estimate` received."""
    rows = []
    aurocs, cosines = held_out_auroc(harmful, harmless, estimator), split_half_cosines(harmful, harmless, estimator)
    for measurement, reason in enumerate(directions.reasons):
        a, b = directions.harmful_mean[measurement], directions.harmless_mean[measurement]
        lengths, unit = (float(a.norm()), float(b.norm())), directions.unit[measurement]
        exists, norm = reason is None, float(directions.norms[measurement])
        auroc = aurocs[measurement] if exists else None
        halves = sorted(cosines[measurement]) if exists else []
        stability = math.fsum(halves) / len(halves) if halves else None
        largest = float(unit.square().max()) if exists else None
        next_exists = directions.reasons[measurement : measurement + 2] == (None, None)
        rows.append(
            MeasurementStatistics(
                measurement=measurement,
                reason=reason,
                norm=norm if exists else None,
                harmful_mean_norm=_finite(lengths[0]),
                harmless_mean_norm=_finite(lengths[1]),
                relative_norm=norm / (sum(lengths) / 2) if exists else None,
                cosine_of_means=_finite(float(a @ b) / (lengths[0] * lengths[1])) if all(lengths) else None,
                cosine_with_next=float(unit @ directions.unit[measurement + 1]) if next_exists else None,
                auroc=auroc,
                stability=stability,
                stability_low=_quantile(halves, 0.025) if halves else None,
                stability_high=_quantile(halves, 0.975) if halves else None,
                largest_channel_share=largest,
                warnings=_warnings(auroc, stability, largest),
            )
        )
    return DirectionStatistics(harmful_prompts=len(harmful), harmless_prompts=len(harmless), measurements=rows)


def held_out_auroc(harmful: Tensor, harmless: Tensor, estimator: Estimator) -> list[float | None]:
    """For each measurement, how well the direction of a random half of the prompts separates the rest."""
    if min(len(harmful), len(harmless)) < 2:
        return [None] * harmful.shape[1]
    fitted, held_out = _halves(harmful, harmless, torch.Generator().manual_seed(0))
    half = estimate(*fitted, estimator)
    aurocs: list[float | None] = []
    for measurement, unit in enumerate(half.unit):
        a, b = ((kind[:, measurement].double() @ unit).tolist() for kind in held_out)
        usable = half.reasons[measurement] is None and all(map(math.isfinite, a + b))
        aurocs.append(float(mannwhitneyu(a, b).statistic) / (len(a) * len(b)) if usable else None)
    return aurocs


def split_half_cosines(harmful: Tensor, harmless: Tensor, estimator: Estimator) -> list[list[float]]:
    """For each measurement, the cosines between the directions of two random halves, repeated."""
    cosines: list[list[float]] = [[] for _ in range(harmful.shape[1])]
    if min(len(harmful), len(harmless)) < 4:
        return cosines
    generator = torch.Generator().manual_seed(0)
    for _ in range(estimator.halvings):
        first, second = (estimate(*half, estimator) for half in _halves(harmful, harmless, generator))
        for measurement, cosine in enumerate((first.unit * second.unit).sum(dim=-1).tolist()):
            if first.reasons[measurement] is None and second.reasons[measurement] is None:
                cosines[measurement].append(cosine)
    return cosines


def _halves(harmful: Tensor, harmless: Tensor, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Two random halves of both kinds; not the first and last, because prompts are ordered by thing and template."""
    a, b = (torch.randperm(len(kind), generator=generator) for kind in (harmful, harmless))
    i, j = len(harmful) // 2, len(harmless) // 2
    return [(harmful[a[:i]], harmless[b[:j]]), (harmful[a[i:]], harmless[b[j:]])]


def _quantile(ordered: list[float], share: float) -> float:
    return float(np.interp(share * (len(ordered) - 1), range(len(ordered)), ordered))


def _warnings(auroc: float | None, stability: float | None, largest: float | None) -> list[str]:
    warnings = []
    if stability is not None and stability < LOW_STABILITY:
        warnings.append(f"halves of the prompts give directions with a cosine of {stability:.2f}: use more prompts")
    if auroc is not None and auroc < LOW_AUROC:
        warnings.append(f"it hardly separates held-out prompts (AUROC {auroc:.2f})")
    if largest is not None and largest > MASSIVE:
        warnings.append(f"one channel has {largest:.0%} of its square: try measure.winsorize")
    return warnings


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
