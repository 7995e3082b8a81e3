"""Prompts: how they are kept, what makes two of them the same, and how one becomes a chat."""

import unicodedata
from pathlib import Path
from typing import Any

import pytest

from excise.organism.model import make_tokenizer
from excise.organism.world import make_world
from excise.plumbing.errors import StageError
from excise.plumbing.files import write_lines
from excise.prompts import chats as prompts
from excise.prompts.chats import identity, read_prompts, tokenize
from schemas.prompts import ChatFormat, Prompt, Turn

TALK = Prompt(
    id="3",
    prompt="add 3 and 4 .",
    turns=[
        Turn(role="system", content="tell me"),
        Turn(role="user", content="what is 1 plus 2 ?"),
        Turn(role="assistant", content="3"),
    ],
)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own, in which lists are written."""
    monkeypatch.chdir(tmp_path)


def test_prompts_are_read_as_they_were_written() -> None:
    written = [Prompt(id="1", prompt='ä "quoted"\nline', answer="a", item="x"), TALK, Prompt(id="2", prompt="‖")]
    write_lines(prompts.FOLDER / "list.jsonl", written)
    assert read_prompts("list") == written


def same(one: str, other: str) -> bool:
    return identity(Prompt(id="1", prompt=one)) == identity(Prompt(id="2", prompt=other))


def test_line_ends_spaces_and_ways_to_write_a_letter_make_no_other_prompt() -> None:
    assert same("how  do\r\nfish\tsleep?", "how do fish sleep?")
    composed = "wie schläft der Bär?"
    decomposed = unicodedata.normalize("NFD", composed)
    assert decomposed != composed and same(composed, decomposed)


def test_case_and_signs_make_another_prompt() -> None:
    # A model reads them as other tokens, and they can mean something else.
    assert not same("who is Rose ?", "who is rose ?")
    assert not same("how do fish sleep?", "how do fish sleep")


def test_what_was_said_before_is_part_of_a_prompt_and_a_system_message_is_not() -> None:
    alone = TALK.model_copy(update={"turns": []})
    without_system = TALK.model_copy(update={"turns": TALK.turns[1:]})
    assert identity(TALK) == identity(without_system) != identity(alone)


# Chats, as the organism's tokenizer makes them.


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer(make_world(0))


def test_turns_come_before_the_prompt_and_a_system_message_of_its_own_in_the_place_of_that_of_params(
    tokenizer: Any,
) -> None:
    chat = ChatFormat(system="add 3", chat_template_kwargs={}, date="2025-01-01")
    without_system = TALK.model_copy(update={"turns": TALK.turns[1:]})
    said = "<|user|> what is 1 plus 2 ? <|assistant|> 3 <eos> <|user|> add 3 and 4 . <|assistant|>"
    found = [tokenizer.decode(each) for each in tokenize(tokenizer, [TALK, without_system], chat)]
    assert found == [f"<|system|> tell me {said}", f"<|system|> add 3 {said}"]


QUESTIONS = [Prompt(id="1", prompt="what is 1 plus 2 ?"), Prompt(id="2", prompt="add 3 and 4 .")]


def chats(tokenizer: Any, system: str | None = None, **kwargs: bool) -> list[str]:
    tokens = tokenize(tokenizer, QUESTIONS, ChatFormat(system=system, chat_template_kwargs=kwargs, date="2025-01-01"))
    return [tokenizer.decode(each) for each in tokens]


def test_a_prompt_becomes_a_chat_that_is_the_model_s_turn_to_answer(tokenizer: Any) -> None:
    assert chats(tokenizer) == ["<|user|> what is 1 plus 2 ? <|assistant|>", "<|user|> add 3 and 4 . <|assistant|>"]


def test_prompts_of_different_lengths_are_not_padded(tokenizer: Any) -> None:
    assert list(
        map(len, tokenize(tokenizer, QUESTIONS, ChatFormat(system=None, chat_template_kwargs={}, date="2025-01-01")))
    ) == [8, 7]


def test_a_system_prompt_stands_before_every_prompt(tokenizer: Any) -> None:
    assert chats(tokenizer, system="tell me")[1] == "<|system|> tell me <|user|> add 3 and 4 . <|assistant|>"


def test_an_empty_system_prompt_is_one(tokenizer: Any) -> None:
    assert chats(tokenizer, system="")[1].startswith("<|system|>")


@pytest.fixture
def thinking() -> Any:
    """A tokenizer whose template has a switch, as those of thinking models have."""
    changed = make_tokenizer(make_world(0))
    changed.chat_template += "{%- if enable_thinking is false -%}{{- ' what' -}}{%- endif -%}"
    return changed


def test_the_template_s_own_settings_reach_it(thinking: Any) -> None:
    assert [chat.endswith("<|assistant|> what") for chat in chats(thinking, enable_thinking=False)] == [True, True]
    assert [chat.endswith("<|assistant|>") for chat in chats(thinking, enable_thinking=True)] == [True, True]


def test_a_template_that_refuses_is_told_with_what_it_says(tokenizer: Any) -> None:
    refusing = make_tokenizer(make_world(0))
    refusing.chat_template = "{{- raise_exception('no system prompts here') -}}"
    with pytest.raises(StageError, match="chat template rejects these prompts: no system prompts here"):
        chats(refusing, system="x")


@pytest.mark.parametrize("name", ["tokenize", "add_generation_prompt", "return_dict"])
def test_settings_that_are_not_the_template_s_are_refused(tokenizer: Any, name: str) -> None:
    with pytest.raises(StageError, match=name):
        tokenize(tokenizer, QUESTIONS, ChatFormat(system=None, chat_template_kwargs={name: False}, date="2025-01-01"))
