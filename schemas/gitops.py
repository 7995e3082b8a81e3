"""What a pull request's comment is made from: everything that differs between a base commit and a head."""

from typing import Literal

from pydantic import Field

from schemas.basis.document import Document, FileDigest
from schemas.evidence import Comparison, GateVerdicts, ParameterChange, TaskChanges
from schemas.model import ModelManifest

Origin = Literal["cache", "remote", "rebuilt"]
"""How a past model came back."""

CARD = "card.md"
"""The file of a release that tells of it."""


class StageChange(Document):
    """A stage whose entry in dvc.lock is another one, and why."""

    stage: str
    kind: Literal["new", "changed", "gone"]
    command: bool = Field(description="whether its command is another one")
    dependencies: list[str] = Field(description="the paths of those that are other ones, new or gone")
    outputs: list[str] = Field(description="the same of what it made; empty where it made the same bytes again")


class LockChanges(Document):
    """Two versions of dvc.lock."""

    stages: list[StageChange] = Field(description="in the head's order, those that are gone last")
    same: int = Field(description="how many stages have the same entry in both")


class Evidence(Document):
    """What one side of the project has found."""

    rows: list[Comparison]
    gates: GateVerdicts


class Difference(Document):
    """Everything that differs between a base commit and a head."""

    base: str = Field(description="a commit: where the head branched off, or the base as it was named")
    base_name: str = Field(description="as it was named")
    head: str = Field(description="a commit; of a working tree, the one that is checked out")
    uncommitted: list[str] = Field(description="files that were read from the working tree and differ from the head's")
    parameters: list[ParameterChange] | None = Field(description="null where the base has no params.yaml to compare")
    lock: LockChanges
    before: Evidence | None = Field(description="the base's; null where it has none that this version reads")
    now: Evidence
    pictures: list[str] = Field(description="the head's: names in report/pictures, without their ending")


class SampleFile(Document):
    """Answers on their way from the machine that has them to the one that shows them."""

    tasks: list[TaskChanges]


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
