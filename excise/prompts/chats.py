"""Prompts on their way from a source to a model."""

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
    """The prompt list `name` of `artifacts/prompts/`."""
    return read_lines(Prompt, FOLDER / f"{name}.jsonl")


def read_format() -> ChatFormat:
    """How prompts become chats, the same for measuring and for lm-eval."""
    return read_document(ChatFormat, FORMAT)


def identity(prompt: Prompt) -> tuple[str, ...]:
    """What two prompts share that are the same one: what user and assistant say, line ends and spaces apart. Not their
    case, which tells a name from a word, and which models read as other tokens. A system message is none of it: the
    same question under another one is no other question."""
    said = [turn.content for turn in prompt.turns if turn.role != "system"]
    return tuple(" ".join(unicodedata.normalize("NFC", text).split()) for text in (*said, prompt.prompt))


def chat_of(prompt: Prompt, system: str | None) -> list[dict[str, str]]:
    """The messages that a model is given; a system message of the prompt's own stands in the place of `system`."""
    own = any(turn.role == "system" for turn in prompt.turns)
    before = [] if system is None or own else [Turn(role="system", content=system)]
    return [turn.model_dump() for turn in (*before, *prompt.turns, Turn(role="user", content=prompt.prompt))]


def tokenize(tokenizer: Any, prompts: list[Prompt], chat: ChatFormat) -> list[list[int]]:
    """The tokens of each prompt as a chat in which it is the model's turn to answer. Raises `StageError`: the chat
    template refuses a chat, or the tokenizer cannot read what the template wrote."""
    return [encode(tokenizer, render(tokenizer, chat_of(prompt, chat.system), chat)) for prompt in prompts]


# Every chat that a model reads goes through the next two: in measuring, diagnosis, drift and both backends of lm-eval.


def render(tokenizer: Any, messages: list[dict[str, str]], chat: ChatFormat, begun: bool = False) -> str:
    """The chat as text, up to where the model answers, or has `begun` to by the last message. Raises `StageError`: the
    template refuses the chat, drops its system message, or takes too much time or memory."""
    others = [message for message in messages if message["role"] != "system"]
    try:
        text = _apply_template(tokenizer, messages, chat, begun)
    except TemplateError as error:
        if len(others) < len(messages) and _renders(tokenizer, others, chat, begun):
            raise StageError(_NO_SYSTEM.format("refuses", f" ({error.reason})")) from None
        raise
    said = any(message["content"].strip() for message in messages if message["role"] == "system")
    if said and _renders(tokenizer, others, chat, begun) == text:
        raise StageError(_NO_SYSTEM.format("ignores", ""))
    return text


def encode(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a rendered chat. As in transformers and in vLLM's server, the template alone decides on special
    tokens: what the tokenizer puts around plain text is not added. Raises `StageError`: it cannot read it."""
    try:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    except Exception as error:  # written in Rust, tokenizers raise plain exceptions
        raise StageError(f"the base model's tokenizer cannot read a prompt: {short(error)}") from None


class TemplateError(StageError):
    """A chat template does not take a chat."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the base model's chat template does not take these prompts: {reason}")
        self.reason = reason


def short(error: BaseException) -> str:
    """What an error says, for one line of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:40]}…{text[40 - _LONGEST_REASON :]}"


TEMPLATE_SECONDS = 5
"""Processor time for one chat, for which real templates take milliseconds."""
TEMPLATE_MEMORY = 2**29
"""Bytes that a template may take while it renders one chat."""
TEMPLATE_TEXT = 2**20
"""Characters that a template may add to a chat."""
_LONGEST_REASON = 120
_NO_SYSTEM = (
    "the base model's chat template {} system messages{}; leave out what brings one: prompts.system, messages in "
    "your prompts, or the description of a task of lm-eval's"
)


def _renders(tokenizer: Any, messages: list[dict[str, str]], chat: ChatFormat, begun: bool) -> str | None:
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
    except UsedUp as much:
        raise TemplateError(f"it {much} for one of them") from None
    except Exception as error:  # templates are programs: what they raise is theirs, jinja2's or transformers'
        raise TemplateError(short(error)) from None
    if len(text) > TEMPLATE_TEXT + 4 * sum(len(message["content"]) for message in messages):
        raise TemplateError(f"it makes a text of {len(text):,} characters of one of them")
    return text


ASKS = "strftime_now"
"""What transformers calls the function by which a template asks."""

_SECONDS_SINCE_1970 = "s"
"""The one code of strftime that depends on the machine's time zone."""


def dated(template: str, date: str) -> str:
    """The template with a macro that stands before the library's function; as it is where it does not ask. A variable
    of that name would not do: transformers hands only plain values on. The time is midnight of an ISO 8601 date."""
    if ASKS not in template:
        return template
    day = datetime.fromisoformat(date)
    codes = [f"%{flag}{letter}" for letter in ascii_letters if letter != _SECONDS_SINCE_1970 for flag in ("", "-")]
    texts = [[code, day.strftime(code)] for code in codes]
    return _MACRO.replace("TEXTS", repr(texts)) + template


# A line of its own, whose end jinja2 takes for the block's: what follows is read as it was.
_MACRO = (
    f"{{%- macro {ASKS}(format) -%}}"
    "{%- for part in format.split('%%') -%}"
    "{%- set day = namespace(text=part) -%}"
    "{%- for code, text in TEXTS -%}{%- set day.text = day.text.replace(code, text) -%}{%- endfor -%}"
    "{{- '' if loop.first else '%' -}}{{- day.text -}}"
    "{%- endfor -%}"
    "{%- endmacro %}\n"
)
