"""Prompts as chats, as text and as tokens. Every chat that a model reads goes through `render` and `encode`: in
measuring, diagnosis, drift and both backends of lm-eval."""

import unicodedata
from datetime import datetime
from pathlib import Path
from string import ascii_letters
from typing import Any

from excise.plumbing.errors import StageError
from excise.plumbing.files import read_document, read_lines
from excise.plumbing.machine import UsedUp, bounded
from schemas.prompts import ChatFormat, Prompt, Turn

FOLDER = Path("artifacts/prompts")
FORMAT = FOLDER / "format.json"
PROMPTS_MANIFEST = FOLDER / "manifest.json"


def read_prompts(name: str) -> list[Prompt]:
    return read_lines(Prompt, FOLDER / f"{name}.jsonl")


def read_format() -> ChatFormat:
    return read_document(ChatFormat, FORMAT)


def identity(prompt: Prompt) -> tuple[str, ...]:
    """What makes two prompts the same: the texts of user and assistant, except for white space. Case counts: it tells
    names from words, and gives other tokens. System messages do not count."""
    texts = [turn.content for turn in prompt.turns if turn.role != "system"]
    return tuple(" ".join(unicodedata.normalize("NFC", text).split()) for text in (*texts, prompt.prompt))


def chat_of(prompt: Prompt, system: str | None) -> list[dict[str, str]]:
    """The messages that a model receives; the prompt's own system message replaces `system`."""
    own = any(turn.role == "system" for turn in prompt.turns)
    before = [] if system is None or own else [Turn(role="system", content=system)]
    return [turn.model_dump() for turn in (*before, *prompt.turns, Turn(role="user", content=prompt.prompt))]


def tokenize(tokenizer: Any, prompts: list[Prompt], chat: ChatFormat) -> list[list[int]]:
    """The tokens of each prompt as a chat, up to the model's answer. Raises `StageError` as `render` and `encode`."""
    return [encode(tokenizer, render(tokenizer, chat_of(prompt, chat.system), chat)) for prompt in prompts]


def render(tokenizer: Any, messages: list[dict[str, str]], chat: ChatFormat, begun: bool = False) -> str:
    """The chat as text, up to the model's answer; if `begun`, the last message is the beginning of the answer. Raises
    `StageError`: the template rejects the chat, drops its system message, or takes too much time or memory."""
    others = [message for message in messages if message["role"] != "system"]
    try:
        text = _apply_template(tokenizer, messages, chat, begun)
    except TemplateError as error:
        if len(others) < len(messages) and _try_template(tokenizer, others, chat, begun):
            raise StageError(_NO_SYSTEM.format("refuses", f" ({error.reason})")) from None
        raise
    has_system = any(message["content"].strip() for message in messages if message["role"] == "system")
    if has_system and _try_template(tokenizer, others, chat, begun) == text:
        raise StageError(_NO_SYSTEM.format("ignores", ""))
    return text


def encode(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a rendered chat. As in transformers and vLLM's server, special tokens come only from the template:
    the tokenizer adds none. Raises `StageError`: the tokenizer fails."""
    try:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    except Exception as error:  # written in Rust, tokenizers raise plain exceptions
        raise StageError(f"the base model's tokenizer cannot read a prompt: {short(error)}") from None


class TemplateError(StageError):
    def __init__(self, reason: str) -> None:
        super().__init__(f"the base model's chat template rejects these prompts: {reason}")
        self.reason = reason


def short(error: BaseException) -> str:
    """The message of an error, as a part of one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:40]}…{text[40 - _LONGEST_REASON :]}"


TEMPLATE_SECONDS = 5
"""Processor time for one chat; real templates take milliseconds."""
TEMPLATE_MEMORY = 2**29
"""Bytes that a template may use to render one chat."""
TEMPLATE_TEXT = 2**20
"""Characters that a template may add to a chat."""
_LONGEST_REASON = 120
_NO_SYSTEM = (
    "the base model's chat template {} system messages{}; remove yours: from prompts.system, from your prompts, or the "
    "lm-eval task that has a description"
)


def _try_template(tokenizer: Any, messages: list[dict[str, str]], chat: ChatFormat, begun: bool) -> str | None:
    try:
        return _apply_template(tokenizer, messages, chat, begun) if messages else None
    except TemplateError:
        return None


def _apply_template(tokenizer: Any, messages: list[dict[str, str]], chat: ChatFormat, begun: bool) -> str:
    try:
        with bounded(TEMPLATE_SECONDS, TEMPLATE_MEMORY):
            text: str = tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                return_dict=False,
                add_generation_prompt=not begun,
                continue_final_message=begun,
                **chat.chat_template_kwargs,
            )
    except UsedUp as error:
        raise TemplateError(f"it {error} for one of them") from None
    except Exception as error:  # templates are programs that may raise anything, as may jinja2 and transformers
        raise TemplateError(short(error)) from None
    if len(text) > TEMPLATE_TEXT + 4 * sum(len(message["content"]) for message in messages):
        raise TemplateError(f"it turns one of them into a text of {len(text):,} characters")
    return text


DATE_FUNCTION = "strftime_now"
"""The function that transformers provides to templates for today's date."""


def dated(template: str, date: str) -> str:
    """The template with a macro that replaces transformers' date function by midnight of an ISO 8601 date; unchanged if
    it does not call that function. A variable of that name does not work: transformers passes only plain values."""
    if DATE_FUNCTION not in template:
        return template
    midnight = datetime.fromisoformat(date)
    letters = ascii_letters.replace("s", "")  # %s depends on the machine's time zone
    codes = [f"%{flag}{letter}" for letter in letters for flag in ("", "-")]
    texts = [[code, midnight.strftime(code)] for code in codes]
    return _MACRO.replace("TEXTS", repr(texts)) + template


# The final line end belongs to the block for jinja2, so the template itself is read unchanged.
_MACRO = (
    f"{{%- macro {DATE_FUNCTION}(format) -%}}"
    "{%- for part in format.split('%%') -%}"
    "{%- set day = namespace(text=part) -%}"
    "{%- for code, text in TEXTS -%}{%- set day.text = day.text.replace(code, text) -%}{%- endfor -%}"
    "{{- '' if loop.first else '%' -}}{{- day.text -}}"
    "{%- endfor -%}"
    "{%- endmacro %}\n"
)
