"""The refusal direction between two sets of activations, by any estimator, and how good it is."""

import math
from dataclasses import dataclass

import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from excise.edit.planning.projectors import Directions
from excise.residual.estimators import Estimator
from excise.residual.estimators.mean import Mean
from schemas.directions import DirectionStatistics, MeasurementStatistics

# Below this share of the stream's own norm a difference is what rounding leaves of two equal means.
SMALLEST_RELATIVE_NORM = 1e-6
MEAN = Mean()


@dataclass(frozen=True)
class Estimate(Directions):
    """Directions with what they were estimated from; ``[measurements, hidden]`` float64."""

    harmful_mean: Tensor
    norms: Tensor
    """``[measurements]``: the length of what was normalised, in the units of the stream."""


def estimate(harmful: Tensor, harmless: Tensor, estimator: Estimator = MEAN) -> Estimate:
    """The direction of each measurement, harmful minus harmless, computed in float64 from two tensors ``[prompts,
    measurements, hidden]`` of any float type, each with as many prompts as it has."""
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
            found = estimator.difference(a[:, measurement], b[:, measurement], difference)
            assert found.shape == difference.shape, type(estimator)
            norm = float(found.norm())
            if not 0 < norm < math.inf:
                reasons.append("the estimator gives no direction here")
                continue
            reasons.append(None)
            norms[measurement] = norm
            unit[measurement] = found / norm
    return Estimate(unit, harmless_mean, tuple(reasons), harmful_mean, norms)


def winsorize(activations: Tensor, quantile: float) -> Tensor:
    """Clamp each activation vector ``[..., hidden]`` to the quantile of its own magnitudes: a massive activation, which
    some models have in a channel or two whatever the prompt, then no longer outweighs the rest."""
    # Not torch.quantile, which refuses long vectors.
    place = max(0, -int(-quantile * activations.shape[-1] // 1) - 1)
    limit = activations.abs().sort(dim=-1).values[..., place, None]
    return activations.clamp(-limit, limit)


LOW_STABILITY, LOW_AUROC, MASSIVE = 0.8, 0.7, 0.5
"""Where warnings begin: cosine between halves, separation of held-out prompts, one channel's share of the square."""


def describe(directions: Estimate, harmful: Tensor, harmless: Tensor, estimator: Estimator) -> DirectionStatistics:
    """Everything that is said of each measurement; null where there is no direction or a number is not finite. Both
    sides are as they were given to `estimate`."""
    rows = []
    aurocs, stabilities = held_out_auroc(harmful, harmless, estimator), split_half_cosines(harmful, harmless, estimator)
    for measurement, reason in enumerate(directions.reasons):
        a, b = directions.harmful_mean[measurement], directions.harmless_mean[measurement]
        lengths, unit = (float(a.norm()), float(b.norm())), directions.unit[measurement]
        there, norm = reason is None, float(directions.norms[measurement])
        auroc = aurocs[measurement] if there else None
        halves = sorted(stabilities[measurement]) if there else []
        stability = math.fsum(halves) / len(halves) if halves else None
        largest = float(unit.square().max()) if there else None
        both = directions.reasons[measurement : measurement + 2] == (None, None)
        rows.append(
            MeasurementStatistics(
                measurement=measurement,
                reason=reason,
                norm=norm if there else None,
                harmful_mean_norm=_finite(lengths[0]),
                harmless_mean_norm=_finite(lengths[1]),
                relative_norm=norm / (sum(lengths) / 2) if there else None,
                cosine_of_means=_finite(float(a @ b) / (lengths[0] * lengths[1])) if all(lengths) else None,
                cosine_with_next=float(unit @ directions.unit[measurement + 1]) if both else None,
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
    """How well the direction of a random half of the prompts tells the others apart: 1 wholly, 0.5 not at all."""
    if min(len(harmful), len(harmless)) < 2:
        return [None] * harmful.shape[1]
    seen, new = _halves(harmful, harmless, torch.Generator().manual_seed(0))
    half = estimate(*seen, estimator)
    found: list[float | None] = []
    for measurement, unit in enumerate(half.unit):
        a, b = ((side[:, measurement].double() @ unit).tolist() for side in new)
        usable = half.reasons[measurement] is None and all(map(math.isfinite, a + b))
        found.append(float(mannwhitneyu(a, b).statistic) / (len(a) * len(b)) if usable else None)
    return found


def split_half_cosines(harmful: Tensor, harmless: Tensor, estimator: Estimator) -> list[list[float]]:
    """For each measurement, the cosines between the directions of two random halves of the prompts, again and again."""
    found: list[list[float]] = [[] for _ in range(harmful.shape[1])]
    if min(len(harmful), len(harmless)) < 4:
        return found
    numbers = torch.Generator().manual_seed(0)
    for _ in range(estimator.halvings):
        first, second = (estimate(*sides, estimator) for sides in _halves(harmful, harmless, numbers))
        for measurement, cosine in enumerate((first.unit * second.unit).sum(dim=-1).tolist()):
            if first.reasons[measurement] is None and second.reasons[measurement] is None:
                found[measurement].append(cosine)
    return found


def _halves(harmful: Tensor, harmless: Tensor, numbers: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Both sides in two random halves: prompts lie in an order (by thing, by template) that halves must not follow."""
    a, b = (torch.randperm(len(side), generator=numbers) for side in (harmful, harmless))
    at, of = len(harmful) // 2, len(harmless) // 2
    return [(harmful[a[:at]], harmless[b[:of]]), (harmful[a[at:]], harmless[b[of:]])]


def _quantile(ordered: list[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    lower = int(place)
    upper = min(lower + 1, len(ordered) - 1)
    return ordered[lower] + (place - lower) * (ordered[upper] - ordered[lower])


def _warnings(auroc: float | None, stability: float | None, largest: float | None) -> list[str]:
    found = []
    if stability is not None and stability < LOW_STABILITY:
        found.append(f"halves of the prompts give directions with a cosine of {stability:.2f}: use more prompts")
    if auroc is not None and auroc < LOW_AUROC:
        found.append(f"it hardly tells held-out prompts apart (AUROC {auroc:.2f})")
    if largest is not None and largest > MASSIVE:
        found.append(f"one channel makes {largest:.0%} of it: try measure.winsorize")
    return found


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
