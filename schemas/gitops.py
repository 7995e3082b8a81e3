"""What pull requests' comments and releases are made from."""

from typing import Literal

from pydantic import Field

from schemas.basis.document import Document, FileDigest
from schemas.evidence import Comparison, GateVerdicts, ParameterChange, TaskChanges
from schemas.model import ModelManifest

Origin = Literal["cache", "remote", "rebuilt"]
"""How a past model came back."""

CARD = "card.md"
"""The file of a release that describes it."""


class StageChange(Document):
    """A stage whose entry in dvc.lock differs, and how."""

    stage: str
    kind: Literal["new", "changed", "gone"]
    command: bool = Field(description="whether its command differs")
    dependencies: list[str] = Field(description="the paths of those that changed, are new or gone")
    outputs: list[str] = Field(description="the same for outputs; empty if it made the same bytes")


class LockChanges(Document):
    stages: list[StageChange] = Field(description="in the head's order, those that are gone last")
    same: int = Field(description="how many stages have the same entry in both")


class Evidence(Document):
    """The results of the base or the head."""

    rows: list[Comparison]
    gates: GateVerdicts


class Difference(Document):
    """Everything that differs between a base commit and a head."""

    base: str = Field(description="a commit: where the head branched off, or the base as it was given")
    base_name: str = Field(description="as it was given")
    head: str = Field(description="a commit; for a working tree, the one that is checked out")
    uncommitted: list[str] = Field(description="files read from the working tree that differ from the head's")
    parameters: list[ParameterChange] | None = Field(description="null if the base has no params.yaml to compare")
    lock: LockChanges
    before: Evidence | None = Field(description="the base's; null if it has none that this version can read")
    now: Evidence
    pictures: list[str] = Field(description="the head's: names in report/pictures, without suffix")


class SampleFile(Document):
    """Answers, passed from the machine that has them to the one that shows them."""

    tasks: list[TaskChanges]


class Release(Document):
    """What a release records of its model."""

    tag: str
    commit: str
    origin: Origin | None = Field(description="null if the folder existed already")
    versions: dict[str, str] = Field(description="of the packages installed where the release is made")
    lock: Literal["same", "other", "none"] = Field(description="requirements.lock there, compared with the commit's")
    locked: bool = Field(description="whether the model was rebuilt with the packages that the commit pins")
    base: ModelManifest
    base_sha256: str = Field(description="of the base's manifest, artifacts/model.json")
    folder_md5: str = Field(description="of models/ablated, as dvc.lock records it")
    files: list[FileDigest] = Field(description="all files of the model's folder, including edit.json")
    rows: list[Comparison] = Field(description="empty if the commit has no evidence")
    gates: GateVerdicts | None
    report: bool = Field(description="whether report.html is part of the release")
