"""What every file that passes between stages is made of. Each is a function of declared inputs alone: no time, no host,
no commit, no library version, and no path but those inside a model folder."""

from pydantic import BaseModel, ConfigDict, Field


class Document(BaseModel):
    """Strict, closed and immutable, as everything that is written to a file here."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class FileDigest(Document):
    """One file of a model folder."""

    path: str = Field(description="relative to the folder, with forward slashes")
    size: int = Field(description="bytes")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
