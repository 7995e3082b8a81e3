"""How good a direction is, measurement by measurement."""

import math

from schemas.artifacts import DirectionStatistics, MeasurementStatistics
from stages.residual.directions import Directions


def describe(directions: Directions, harmful_prompts: int, harmless_prompts: int) -> DirectionStatistics:
    """Norms (in the units of the stream) and the cosine of the two means, null where they are not finite."""
    rows = []
    for measurement, reason in enumerate(directions.reasons):
        harmful, harmless = directions.harmful_mean[measurement], directions.harmless_mean[measurement]
        a, b = float(harmful.norm()), float(harmless.norm())
        norm = float((harmful - harmless).norm())
        rows.append(
            MeasurementStatistics(
                measurement=measurement,
                reason=reason,
                norm=None if reason else norm,
                harmful_mean_norm=_finite(a),
                harmless_mean_norm=_finite(b),
                relative_norm=None if reason else norm / ((a + b) / 2),
                cosine_of_means=_finite(float(harmful @ harmless) / (a * b)) if a and b else None,
            )
        )
    return DirectionStatistics(harmful_prompts=harmful_prompts, harmless_prompts=harmless_prompts, measurements=rows)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
