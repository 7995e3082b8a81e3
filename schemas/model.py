"""`artifacts/model.json`: the base model, pinned."""

from typing import Literal

from pydantic import Field

from schemas.document import Document, FileDigest

Dtype = Literal["float32", "bfloat16", "float16"]


class ModelManifest(Document):
    """`artifacts/model.json`: the base model, pinned. Where the folder lies is no part of what it is."""

    source: Literal["organism", "folder", "hub"]
    id: str | None = Field(default=None, description="organisation/name on the Hub; null for other sources")
    revision: str | None = Field(default=None, description="its commit there; null for other sources")
    model_type: str = Field(description="of config.json; of its text part where the model has several")
    dtype: Dtype = Field(description="what measuring and evaluation load it in")
    layers: int = Field(description="decoder layers in use; measurements go from 0 to this number")
    hidden_size: int
    files: list[FileDigest] = Field(description="sorted by path")
