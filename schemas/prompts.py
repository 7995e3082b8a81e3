"""`artifacts/prompts/`: prompts, their sources, and how they become chats."""

from typing import Any, Literal

from pydantic import Field

from schemas.basis.document import Document, Sha256, is_none
from schemas.params.sources import SourceKind

Role = Literal["system", "user", "assistant"]


class ChatFormat(Document):
    """`artifacts/prompts/format.json`: how prompts become tokens, in measurement and in lm-eval."""

    system: str | None
    chat_template_kwargs: dict[str, Any]
    date: str = Field(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}$", description="what templates insert as today's date")


class Turn(Document):
    role: Role
    content: str


class Prompt(Document):
    """One line of `artifacts/prompts/*.jsonl`."""

    id: str
    prompt: str
    answer: str | None = Field(default=None, description="the correct answer, if known")
    item: str | None = Field(default=None, description="prompts that share an item are not independent samples")
    turns: list[Turn] = Field(default=[], description="earlier messages; a system message replaces `prompts.system`")


class PromptOrigin(Document):
    """Where the harmful or harmless prompts come from, and how many of its rows were used."""

    kind: SourceKind
    source: str = Field(description="organism, a file's path in the project, or a dataset's id")
    revision: str | None
    config: str | None
    split: str | None
    slice: str | None
    where: dict[str, str | bool | int | float] | None = Field(default=None, exclude_if=is_none)
    column: str | None
    sha256: Sha256 | None = Field(description="of a file; null for other sources")
    rows: int = Field(description="that the slice takes")
    filtered: int | None = Field(default=None, exclude_if=is_none, description="rows that `where` leaves out, if set")
    empty: int = Field(description="rows without a prompt")
    duplicates: int = Field(description="rows with the prompt of an earlier one")


class PromptList(Document):
    """One file of `artifacts/prompts/`."""

    prompts: int
    sha256: Sha256


class PromptsManifest(Document):
    """`artifacts/prompts/manifest.json`."""

    harmful: PromptOrigin
    harmless: PromptOrigin
    seed: int = Field(description="shuffle seed for files and datasets; the organism's lists keep their order")
    lists: dict[str, PromptList]
