"""`edit.json`: what was done to which tensors of which base model."""

from typing import Any

from pydantic import Field

from schemas.basis.document import Document, FileDigest, Sha256
from schemas.model import ModelManifest


class Projection(Document):
    """How one tensor of the base is edited: the direction of one measurement is removed, `scale` times."""

    tensor: str
    file: str
    role: str
    layer: int | None = Field(description="null for the embeddings")
    measurement: float
    scale: float
    experts: list[int] | None = Field(description="which matrices along the first axis; null for all")
    norms: list[str] = Field(description="the weights of the norms between the tensor and the stream, in order")
    left: float | None = None
    """share of what it writes along the direction that `through_norm: ignore` leaves; null if there is none"""


class BiasShift(Document):
    """What is added to the bias with which one router chooses experts."""

    tensor: str
    file: str
    layer: int
    selects_only: bool = Field(description="whether it leaves the weights of the chosen experts as they are")
    added: list[float] = Field(description="for each expert, in the units of the router's scores")


class EditRecord(Document):
    """`edit.json` in an edited model's folder."""

    base: ModelManifest
    ablate: dict[str, Any] = Field(description="the resolved `ablate` section of params.yaml")
    directions_sha256: Sha256
    expert_use_sha256: Sha256 | None = Field(description="of artifacts/expert_use.json; null if no router is changed")
    plan: list[Projection]
    router_bias: list[BiasShift] = Field(description="empty if `ablate.router_bias` is null")
    spare_layers: list[str] = Field(description="prefixes of unused layers (multi-token prediction), which are copied")
    left_out: list[str] = Field(description="files of the base that hold other copies of its weights; not copied")
    files: list[FileDigest] = Field(description="all other files of the folder except edit.json.sha256, sorted by path")


class PlanRow(Document):
    """What a plan does to the tensors of one role."""

    role: str
    tensors: int
    layers: list[int] = Field(description="empty for the embeddings")
    parameters: int
    bytes: int
