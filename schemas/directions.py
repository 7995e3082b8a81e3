"""What measuring leaves behind: the statistics of directions, and the use of experts."""

from pydantic import Field

from schemas.basis.document import Document


class MeasurementStatistics(Document):
    """One row of `artifacts/directions.json`; norms in the units of the residual stream."""

    measurement: int
    reason: str | None = Field(description="why there is no direction; null if there is one")
    norm: float | None = Field(description="of harmful mean minus harmless mean")
    harmful_mean_norm: float | None
    harmless_mean_norm: float | None
    relative_norm: float | None = Field(description="norm over the mean of the two means' norms")
    cosine_of_means: float | None
    cosine_with_next: float | None = Field(description="of this direction and the next measurement's")
    auroc: float | None = Field(description="of the projections of prompts on the direction of the other half")
    stability: float | None = Field(description="mean cosine between the directions of two random halves")
    stability_low: float | None = Field(description="2.5 % quantile of these cosines")
    stability_high: float | None = Field(description="97.5 % quantile")
    largest_channel_share: float | None = Field(description="of the direction's squared norm, in its largest channel")
    warnings: list[str] = Field(description="why this direction may not be reliable")


class DirectionStatistics(Document):
    """`artifacts/directions.json`."""

    harmful_prompts: int
    harmless_prompts: int
    measurements: list[MeasurementStatistics]


class LayerExpertUse(Document):
    """One row of `artifacts/expert_use.json`: for each expert, how many prompts' measured token it is chosen on."""

    layer: int
    harmful: list[int]
    harmless: list[int]


class ExpertUse(Document):
    """`artifacts/expert_use.json`."""

    harmful_prompts: int
    harmless_prompts: int
    layers: list[LayerExpertUse] = Field(description="those with routed experts")
