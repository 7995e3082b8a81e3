"""A model's responses to the requests of lm-eval's tasks, before they are scored."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from pydantic import ConfigDict
from transformers import set_seed

from excise.evaluation.asking.catalogue import SEED, ListedTask
from excise.plumbing.errors import StageError
from excise.plumbing.files import Unreadable, read_document, write_json
from schemas.basis.document import Document
from schemas.prompts import ChatFormat
from schemas.results import Response

ANSWERS = Path("answers")
DRIFT = ANSWERS / "ablated/drift.jsonl"
LARGEST = 2**30
"""Bytes of a model's responses in one task."""
Side = Literal["base", "ablated"]


class TaskAnswers(Document):
    model_config = ConfigDict(ser_json_inf_nan="constants")

    responses: list[Response]
    batch_size: int | None
    """Samples asked at once, at the end; None if the backend decides."""


def chosen_side(stage: str, arguments: list[str]) -> Side:
    """The model that a stage's command line names. Raises `StageError`: it names none."""
    if arguments not in (["base"], ["ablated"]):
        raise StageError(f"say which model: python -m stages.{stage} base, or ablated")
    return "base" if arguments == ["base"] else "ablated"


def responses_file(side: Side, task: str) -> Path:
    return ANSWERS / side / f"responses/{task}.jsonl"


def request_digest(request: Instance) -> str:
    """SHA-256 of a request: its type, rendered text, and continuation or generation settings."""
    asked = [request.request_type, *request.args]
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()


def ask(lm: LM, task: ListedTask, chat: ChatFormat) -> TaskAnswers:
    """Ask the model a task with the chat template, as lm-eval itself would."""
    set_seed(SEED)
    requests: dict[str, list[Instance]] = {}
    for part in task.parts.values():
        part.build_all_requests(
            system_instruction=chat.system,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
            chat_template=lm.apply_chat_template,
            tokenizer_name=lm.tokenizer_name,
        )
        for request in part.instances:
            requests.setdefault(request.request_type, []).extend([request] * request.repeats)
    responses = []
    for request_type, same_type in requests.items():
        digests = [request_digest(request) for request in same_type]  # before a backend changes their settings
        for digest, response in zip(digests, getattr(lm, request_type)(same_type), strict=True):
            responses.append(Response(request=digest, response=response))
    return TaskAnswers(responses=responses, batch_size=lm.batch_size if isinstance(lm.batch_size, int) else None)


def ask_all(
    tasks: Sequence[ListedTask], kept: Path, chat: ChatFormat, open_model: Callable[[], LM]
) -> dict[str, TaskAnswers]:
    """A model's responses in each task, by name; the model is opened for the first that `kept` lacks or has damaged."""
    answered: dict[str, TaskAnswers] = {}
    lm: LM | None = None
    for task in tasks:
        path = kept / f"{task.name}.json"
        try:
            answered[task.name] = read_document(TaskAnswers, path, largest=LARGEST)
        except Unreadable:
            lm = lm or open_model()
            answered[task.name] = ask(lm, task, chat)
            write_json(path, answered[task.name])
    return answered
