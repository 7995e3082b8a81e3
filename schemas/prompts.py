"""`artifacts/prompts/`: prompts, where they come from, and how they become chats."""

from typing import Any, Literal

from pydantic import Field

from schemas.basis.document import Document
from schemas.params.sources import SourceKind

Role = Literal["system", "user", "assistant"]


class ChatFormat(Document):
    """`artifacts/prompts/format.json`: how a prompt becomes tokens, the same for measuring and for lm-eval."""

    system: str | None
    chat_template_kwargs: dict[str, Any]
    date: str = Field(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}$", description="what a template is told that asks the day")


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
    turns: list[Turn] = Field(default=[])
    """what was said before it; a system message here stands in the place of `prompts.system`"""


class PromptOrigin(Document):
    """Where one side's prompts come from, and what became of its rows."""

    kind: SourceKind
    source: str = Field(description="organism, a file's path in the project, or a dataset's id")
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
    seed: int = Field(description="shuffle seed for files and datasets; the organism's lists keep their own order")
    lists: dict[str, PromptList]
