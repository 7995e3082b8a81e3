"""A prompt is the same text on every day, also where the chat template asks for today's."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from excise.evaluation.answering.backends import Transformers
from excise.inference.loading.tokenizer import load_tokenizer
from excise.organism.model import make_model, make_tokenizer
from excise.organism.world import make_world
from excise.prompts.chats import DATE_FUNCTION, dated, tokenize
from schemas.prompts import ChatFormat, Prompt

DAY = "2031-02-03"

# As the templates of Llama 3.2 and of gpt-oss ask, which have more around it.
LLAMA = (
    "{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
    "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{{- 'Today Date: ' + date_string }}{%- for message in messages %}{{- message['content'] }}{%- endfor %}"
)
GPT_OSS = (
    "{%- macro build_system_message() -%}{{- 'Current date: ' + strftime_now('%Y-%m-%d') }}{%- endmacro -%}\n"
    "{%- set system_message = build_system_message() %}{{- system_message }}"
)


def render(template: str) -> str:
    tokenizer = make_tokenizer(make_world(0))
    tokenizer.chat_template = template
    return str(tokenizer.apply_chat_template([{"role": "user", "content": "!"}], tokenize=False))


@pytest.mark.parametrize(
    ("template", "text"), [(LLAMA, "Today Date: 03 Feb 2031!"), (GPT_OSS, "Current date: 2031-02-03")]
)
def test_a_template_that_asks_for_the_day_is_told_that_of_params(template: str, text: str) -> None:
    assert render(template) != text
    assert render(dated(template, DAY)) == text


@pytest.mark.parametrize(
    "format", ["%A, %B %d, %Y", "%-d/%-m/%y", "%H:%M:%S", "100 %% of %Y", "%%Y", "%%%Y", "none", "", "%j %p"]
)
def test_what_is_told_is_what_strftime_says(format: str) -> None:
    template = "{{- '<' + strftime_now(" + repr(format) + ") + '>' }}"
    assert render(dated(template, DAY)) == f"<{datetime(2031, 2, 3).strftime(format)}>"


TEMPLATE_PARTS = st.lists(
    st.sampled_from(["\n", " ", "x", "{% if true %}", "{%- if true -%}", "{{ 1 }}", "{{- 2 -}}", "{# c #}"]), max_size=6
)


@settings(max_examples=30, deadline=None)  # each template is compiled anew
@given(TEMPLATE_PARTS)
def test_the_rest_of_a_template_is_read_as_it_was(parts: list[str]) -> None:
    text = "".join(parts) + "{% endif %}" * sum("if" in part for part in parts)
    asks = "{% if false %}{{ strftime_now('%Y') }}{% endif %}"
    assert render(dated(text + asks, DAY)) == render(text + asks)


def test_a_template_that_does_not_ask_stays_as_it_is() -> None:
    template = make_tokenizer(make_world(0)).chat_template
    assert DATE_FUNCTION not in template and dated(template, DAY) == template


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer whose template prints the day, in words that the organism knows."""
    tokenizer = make_tokenizer(make_world(0))
    tokenizer.chat_template = "{{- strftime_now('%d').lstrip('0') + ' ' }}" + tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_measuring_and_lm_eval_are_told_the_same_day(folder: Path) -> None:
    tokenizer: Any = load_tokenizer(folder, DAY)
    chat = ChatFormat(system=None, chat_template_kwargs={}, date=DAY)
    ((*tokens,),) = tokenize(tokenizer, [Prompt(id="1", prompt="add 3 and 4 .")], chat)
    lm = Transformers(make_model("llama", tokenizer).eval(), tokenizer, chat, 1)
    asked = lm.apply_chat_template([{"role": "user", "content": "add 3 and 4 ."}])
    assert asked == "3 <|user|> add 3 and 4 . <|assistant|>"
    assert tokens == lm.tok_encode(asked, add_special_tokens=False)


def test_several_templates_are_told_the_day_each(folder: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = {"default": LLAMA, "tool_use": GPT_OSS}
    tokenizer.save_pretrained(folder)
    loaded = load_tokenizer(folder, DAY)
    texts = [
        loaded.apply_chat_template([{"role": "user", "content": ""}], tokenize=False, chat_template=name)
        for name in ("default", "tool_use")
    ]
    assert texts == ["Today Date: 03 Feb 2031", "Current date: 2031-02-03"]
