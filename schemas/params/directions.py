"""Section `measure`: how directions are estimated."""

from typing import Annotated, Any

from pydantic import Field

from schemas.basis.document import Section
from schemas.extensions import Room

ESTIMATORS = Room("excise.residual.estimators")


class Directions(Section):
    """How directions are estimated from activations."""

    estimator: Annotated[Any, ESTIMATORS] = Field(default="mean", validate_default=True)
    """Estimates the direction between harmful and harmless activations."""
    winsorize: Annotated[float, Field(gt=0.5, le=1)] | None = None
    """First clamp each activation vector to this quantile of its own magnitudes; `null`: do not."""
