"""A release of an edited model: what its card tells."""

from typing import Literal

from pydantic import Field

from schemas.document import Document, FileDigest
from schemas.evidence import Comparison, GateVerdicts
from schemas.model import ModelManifest

Origin = Literal["cache", "remote", "rebuilt"]
"""How a past model came back."""

CARD = "card.md"
"""The file of a release that tells of it."""


class Release(Document):
    """All of it. Never part of a stage's output: it is gathered when a release is made."""

    tag: str
    commit: str
    origin: Origin | None = Field(description="null where the folder was there already")
    versions: dict[str, str] = Field(description="of what is installed where the release is made")
    lock: Literal["same", "other", "none"] = Field(description="requirements.lock there, beside that of the commit")
    locked: bool = Field(description="whether it was rebuilt with the packages that the commit pins")
    base: ModelManifest
    base_sha256: str = Field(description="of the base's manifest, artifacts/model.json")
    folder_md5: str = Field(description="of models/ablated, as dvc.lock records it")
    files: list[FileDigest] = Field(description="all of the model's folder, edit.json among them")
    rows: list[Comparison] = Field(description="empty where the commit has no evidence")
    gates: GateVerdicts | None
    report: bool = Field(description="whether report.html is part of the release")
