"""Prompts of several turns as lm-eval's tasks: its own send one message of a user, after examples that they choose."""

from collections.abc import Callable, Mapping
from typing import Any

from lm_eval.api.task import ConfigurableTask

from excise.plumbing.errors import StageError
from excise.prompts.chats import chat_of
from schemas.prompts import Prompt, Turn


class Conversations(ConfigurableTask):
    """A task whose documents are our prompts. The model receives the same messages as in measuring; a prompt's own
    system message replaces `prompts.system`."""

    def __init__(self, config: dict[str, Any]) -> None:
        # By `class`, which is no setting of a task, lm-eval found this class.
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def fewshot_context(
        self,
        doc: Mapping[str, Any],
        num_fewshot: int,
        system_instruction: str | None = None,
        apply_chat_template: bool = False,
        fewshot_as_multiturn: bool = False,
        chat_template: Callable[..., str] | None = None,
        gen_prefix: str | None = None,
    ) -> str:
        prompt = prompt_of(doc)
        if apply_chat_template and chat_template is not None:
            return chat_template(chat_of(prompt, system_instruction))
        if prompt.turns:
            raise StageError(f"prompt {prompt.id} has earlier messages; run lm-eval with --apply_chat_template")
        return prompt.prompt if system_instruction is None else f"{system_instruction}\n\n{prompt.prompt}"


def prompt_of(document: Mapping[str, Any]) -> Prompt:
    """The prompt of a document."""
    turns = [Turn.model_validate(turn) for turn in document["turns"] or ()]
    return Prompt(id=document["id"], prompt=document["prompt"], turns=turns)


def transcript(document: Mapping[str, Any]) -> str:
    """A prompt as judges and reports show it: its text, or every message after its role if there are earlier ones."""
    prompt = prompt_of(document)
    messages = [f"{turn.role}: {turn.content}" for turn in prompt.turns]
    return "\n\n".join([*messages, f"user: {prompt.prompt}"]) if messages else prompt.prompt
