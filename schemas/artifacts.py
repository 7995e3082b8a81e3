"""What every file that passes between stages may hold. Each is a function of declared inputs alone: no time, no host,
no commit, no library version, and no path but those inside a model folder."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.params import SourceKind


class Document(BaseModel):
    """Strict, closed and immutable, as everything that is written to a file here."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class FileDigest(Document):
    """One file of a model folder."""

    path: str = Field(description="relative to the folder, with forward slashes")
    size: int = Field(description="bytes")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class ModelManifest(Document):
    """`artifacts/model.json`: the base model, pinned. Where the folder lies is no part of what it is."""

    source: Literal["organism", "folder", "hub"]
    id: str | None = Field(default=None, description="organisation/name on the Hub; null for other sources")
    revision: str | None = Field(default=None, description="its commit there; null for other sources")
    model_type: str = Field(description="of config.json; of its text part where the model has several")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(description="what measuring and evaluation load it in")
    layers: int = Field(description="decoder layers in use; measurements go from 0 to this number")
    hidden_size: int
    files: list[FileDigest] = Field(description="sorted by path")


class ChatFormat(Document):
    """`artifacts/prompts/format.json`: how a prompt becomes tokens, the same for measuring and for lm-eval."""

    system: str | None
    chat_template_kwargs: dict[str, Any]
    date: str = Field(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}$", description="what a template is told that asks the day")


Role = Literal["system", "user", "assistant"]


class Turn(Document):
    """One message of a conversation."""

    role: Role
    content: str


class Prompt(Document):
    """One line of `artifacts/prompts/*.jsonl`."""

    id: str
    prompt: str
    answer: str | None = Field(default=None, description="the right answer, where one is known")
    item: str | None = Field(default=None, description="prompts that share an item are not independent samples")
    turns: list[Turn] = Field(
        default=[], description="what was said before it; a system message here stands in the place of `prompts.system`"
    )


class PromptOrigin(Document):
    """Where one side's prompts come from, and what became of its rows."""

    kind: SourceKind
    source: str = Field(description="organism, a file's path in the project, or a data set's id")
    revision: str | None
    config: str | None
    split: str | None
    slice: str | None
    column: str | None
    sha256: str | None = Field(pattern="^[0-9a-f]{64}$", description="of a file; null for other sources")
    rows: int = Field(description="that the slice takes")
    empty: int = Field(description="rows of these that hold no prompt")
    duplicates: int = Field(description="further rows that hold the prompt of an earlier one")


class PromptList(Document):
    """One file of `artifacts/prompts/`."""

    prompts: int
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class PromptsManifest(Document):
    """`artifacts/prompts/manifest.json`."""

    harmful: PromptOrigin
    harmless: PromptOrigin
    seed: int = Field(description="of the order of what files and data sets hold; the organism's lists keep their own")
    lists: dict[str, PromptList]


class MeasurementStatistics(Document):
    """One row of `artifacts/directions.json`; norms in the units of the residual stream."""

    measurement: int
    reason: str | None = Field(description="why there is no direction here; null when there is one")
    norm: float | None = Field(description="of harmful mean minus harmless mean")
    harmful_mean_norm: float | None
    harmless_mean_norm: float | None
    relative_norm: float | None = Field(description="norm over the mean of the two means' norms")
    cosine_of_means: float | None
    cosine_with_next: float | None = Field(description="of this direction and the next measurement's")
    auroc: float | None = Field(description="of the projection of held-out prompts on the other half's direction")
    stability: float | None = Field(description="mean cosine between the directions of two random halves")
    stability_low: float | None = Field(description="2.5 % quantile of these cosines")
    stability_high: float | None = Field(description="97.5 % quantile")
    largest_channel_share: float | None = Field(description="of the direction's square, in its largest channel")
    warnings: list[str] = Field(description="why this may be no direction to trust")


class DirectionStatistics(Document):
    """`artifacts/directions.json`."""

    harmful_prompts: int
    harmless_prompts: int
    measurements: list[MeasurementStatistics]


class LayerExpertUse(Document):
    """One row of `artifacts/expert_use.json`: for each expert, the prompts whose measured token is given to it."""

    layer: int
    harmful: list[int]
    harmless: list[int]


class ExpertUse(Document):
    """`artifacts/expert_use.json`."""

    harmful_prompts: int
    harmless_prompts: int
    layers: list[LayerExpertUse] = Field(description="those with routed experts")


class Projection(Document):
    """How one tensor of the base is edited: the direction of one measurement, taken out `scale` times."""

    tensor: str
    file: str
    role: str
    layer: int | None = Field(description="null for the embeddings")
    measurement: float
    scale: float
    experts: list[int] | None = Field(description="which matrices along the first axis; null for all")
    norms: list[str] = Field(description="the weights of the norms between the tensor and the stream, in their order")


class BiasShift(Document):
    """What is added to the bias by which one router chooses experts."""

    tensor: str
    file: str
    layer: int
    selects_only: bool = Field(description="whether it leaves the weights of the chosen experts as they are")
    added: list[float] = Field(description="for each expert, in the units of the router's scores")


class EditRecord(Document):
    """`edit.json` in an edited model's folder."""

    base: ModelManifest
    ablate: dict[str, Any] = Field(description="the resolved `ablate` section of params.yaml")
    directions_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    expert_use_sha256: str | None = Field(
        pattern="^[0-9a-f]{64}$", description="of the counts that routers' biases were moved by; null where none was"
    )
    plan: list[Projection]
    router_bias: list[BiasShift] = Field(description="empty where `ablate.router_bias` is null")
    spare_layers: list[str] = Field(
        description="prefixes of layers that are not in use (multi-token prediction); copied"
    )
    left_out: list[str] = Field(description="files of the base that hold other copies of its weights; not copied")
    files: list[FileDigest] = Field(description="every other file of the folder but edit.json.sha256, sorted by path")


class PlanRow(Document):
    """What a plan does to the tensors of one role."""

    role: str
    tensors: int
    layers: list[int] = Field(description="empty for the embeddings")
    parameters: int
    bytes: int
