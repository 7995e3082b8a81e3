"""Prompts on their way from a source to a model."""

import unicodedata
from pathlib import Path
from typing import Any

from schemas.artifacts import ChatFormat, Prompt, Turn
from stages.base.artifacts import read_document, read_lines
from stages.base.files import write_text
from stages.base.stage import StageError

FOLDER = Path("artifacts/prompts")
FORMAT = FOLDER / "format.json"
PROMPTS_MANIFEST = FOLDER / "manifest.json"


def write_prompts(path: Path, prompts: list[Prompt]) -> None:
    """One JSON object a line."""
    write_text(path, "".join(prompt.model_dump_json() + "\n" for prompt in prompts))


def read_prompts(name: str) -> list[Prompt]:
    """The prompt list `name` of `artifacts/prompts/`."""
    return read_lines(Prompt, FOLDER / f"{name}.jsonl")


def read_format() -> ChatFormat:
    """How prompts become chats, the same for measuring and for lm-eval."""
    return read_document(ChatFormat, FORMAT)


def identity(prompt: Prompt) -> tuple[str, ...]:
    """What two prompts share that are the same one: what user and assistant say, line ends and spaces apart.

    Not their case, which tells a name from a word, and which models read as other tokens. A system message is none of
    it: the same question under another one is no other question.
    """
    said = [turn.content for turn in prompt.turns if turn.role != "system"]
    return tuple(" ".join(unicodedata.normalize("NFC", text).split()) for text in (*said, prompt.prompt))


def chat_of(prompt: Prompt, system: str | None) -> list[dict[str, str]]:
    """The messages that a model is given; a system message of the prompt's own stands in the place of `system`."""
    own = any(turn.role == "system" for turn in prompt.turns)
    before = [] if system is None or own else [Turn(role="system", content=system)]
    return [turn.model_dump() for turn in (*before, *prompt.turns, Turn(role="user", content=prompt.prompt))]


def tokenize(tokenizer: Any, prompts: list[Prompt], chat: ChatFormat) -> list[list[int]]:
    """The tokens of each prompt as a chat that is the model's turn to answer.

    Raises:
        StageError: the tokenizer has no chat template, or the template refuses the chat.
    """
    chats = [chat_of(prompt, chat.system) for prompt in prompts]
    try:
        encoded = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, **chat.chat_template_kwargs
        )
    except Exception as error:  # templates are programs: what they raise is theirs, jinja2's or transformers'
        raise StageError(f"the base model's chat template does not take these prompts: {error}") from None
    return [list(tokens) for tokens in encoded["input_ids"]]
