"""Section `measure`, as far as directions are estimated."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.basis.document import Section

Estimator = Literal["mean", "median", "pca"]


class Directions(Section):
    """How directions are estimated from activations."""

    estimator: Estimator = "mean"
    """`mean` is the difference of means, `median` that of geometric medians, `pca` the first principal component of
    harmful activations seen from the harmless mean."""
    winsorize: Annotated[float, Field(gt=0.5, le=1)] | None = None
    """First clamp each activation vector to this quantile of its own magnitudes; `null`: do not."""
