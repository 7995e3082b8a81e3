"""`artifacts/refusal_tokens.json`: with which tokens the base model begins refusals."""

from pydantic import Field

from schemas.basis.document import ARTIFACTS, Document

REFUSAL_TOKENS = ARTIFACTS / "refusal_tokens.json"


class RefusalToken(Document):
    token: int
    text: str
    harmful: float = Field(description="mean probability as the first token, on the measured harmful prompts")
    harmless: float = Field(description="the same on harmless ones")


class RefusalTokens(Document):
    tokens: list[RefusalToken] = Field(description="the surest first; never empty")
    harmful_prompts: int
    harmless_prompts: int

    @property
    def numbers(self) -> list[int]:
        return [row.token for row in self.tokens]
