"""Stage answer: base or edited model → its answers to each task, and its drift from the base. Nothing is judged."""

import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save
from transformers import PreTrainedModel

from excise.checkpoint.base_model import base_checkpoint, base_folder, read_config, read_manifest, verify
from excise.checkpoint.weights import read_checkpoint
from excise.evaluation.answering.backends import Transformers, require_vllm, with_vllm
from excise.evaluation.answering.drift import drift_samples, read_predictions
from excise.evaluation.asking.answers import ANSWERS, DRIFT, Side, ask_all, chosen_side, responses_file
from excise.evaluation.asking.catalogue import ListedTask, draw, load_tasks
from excise.evaluation.asking.overlap import leave_out, read_measured_prompts
from excise.inference.continuations import greedy_answers, predictions
from excise.inference.forward import first_size
from excise.inference.loading.models import load_model, remote_code_is_trusted
from excise.inference.loading.tokenizer import load_tokenizer
from excise.plumbing.errors import StageError, run_stage
from excise.plumbing.files import read_document, write_bytes, write_json, write_lines
from excise.plumbing.machine import placement
from excise.plumbing.progress import progress
from excise.plumbing.unfinished import unfinished_work
from excise.prompts.chats import chat_of, read_format, read_prompts, render, tokenize
from excise.prompts.reasoning import reasons
from schemas.basis.document import read_settings
from schemas.model import Dtype
from schemas.params.answer import Answer
from schemas.prompts import ChatFormat, Prompt
from schemas.refusals import REFUSAL_TOKENS, RefusalTokens
from schemas.results import Answers

ABLATED = Path("models/ablated")
PREDICTIONS = ANSWERS / "base/predictions.safetensors"
MOST_DRIFT_PROMPTS = 400


def main() -> None:
    side = chosen_side("answer", sys.argv[1:])
    settings = read_settings(Answer, Path("artifacts/params/answer.json"))
    chat, folder = read_format(), ABLATED if side == "ablated" else base_folder(read_manifest())
    if side == "base":
        verify(folder, read_manifest())
    if settings.backend == "vllm":
        require_vllm()
    tokenizer = load_tokenizer(folder, chat.date)
    longest_text = read_config(folder).get("max_position_embeddings")
    tasks = load_tasks(settings, longest_text=longest_text, reasoning=reasons(tokenizer, chat))
    check_descriptions(tasks, tokenizer, chat)
    leave_out(tasks, read_measured_prompts(), settings)
    draw(tasks, settings)
    judged = {part for task in tasks if task.judged for part in task.parts}
    dtype, batch_size = arithmetic(side, settings)

    machine = {"device": str(placement()), "remote code": str(remote_code_is_trusted(folder))}
    kept = unfinished_work(f"answer@{side}", machine)
    checkpoint = base_checkpoint(folder, read_manifest()) if side == "base" else read_checkpoint(folder)
    if settings.backend == "vllm":
        open_vllm = partial(with_vllm, checkpoint, dtype, tokenizer, chat, settings.vllm)
        answered = ask_all(tasks, kept, chat, open_vllm)
    # vLLM has left the GPU by now.
    model = load_model(checkpoint, dtype, placement())
    if settings.backend == "hf":
        open_hf = partial(Transformers, model, tokenizer, chat, batch_size, judged)
        answered = ask_all(tasks, kept, chat, open_hf)
    measure_drift(side, model, tokenizer, chat, batch_size)

    for name, answers in answered.items():
        write_lines(responses_file(side, name), answers.responses)
    counts = {name: len(answers.responses) for name, answers in answered.items()}
    batch_size = min([batch_size, *(answers.batch_size or batch_size for answers in answered.values())])
    write_json(ANSWERS / side / "answers.json", Answers(responses=counts, dtype=dtype, batch_size=batch_size))
    shutil.rmtree(kept, ignore_errors=True)


def check_descriptions(tasks: list[ListedTask], tokenizer: Any, chat: ChatFormat) -> None:
    """Raises `StageError`: a task has a description, and the chat template accepts no system message."""
    if described := [
        task.name for task in tasks if any(part.get_config("description") for part in task.parts.values())
    ]:
        try:
            render(tokenizer, chat_of(Prompt(id="", prompt="Hello"), "Answer the question."), chat)
        except StageError as error:
            raise StageError(f"{described[0]}: {error}") from None


def arithmetic(side: Side, settings: Answer) -> tuple[Dtype, int]:
    """The dtype and first batch size; for the edited model those of the base, so that rounding and padding match."""
    if side == "ablated":
        base = read_document(Answers, ANSWERS / "base/answers.json")
        return base.dtype, base.batch_size
    return read_manifest().dtype, first_size(settings.batch_size)


def measure_drift(side: Side, model: PreTrainedModel, tokenizer: Any, chat: ChatFormat, batch_size: int) -> None:
    """Write base answers and predictions, or the edited model's drift. Raises `StageError`: logits are not finite."""
    drift_prompts = read_prompts("drift")[:MOST_DRIFT_PROMPTS]
    prompts = tokenize(tokenizer, drift_prompts, chat)
    if side == "base":
        with progress("Answers for drift", len(prompts), "prompts") as advance:
            answers = greedy_answers(model, tokenizer, prompts, batch_size, advance)
        with progress("Predictions for drift", len(prompts), "prompts") as advance:
            predicted = predictions(model, prompts, answers, batch_size, advance)
        if not predicted.log_probabilities.isfinite().all():
            raise StageError("the base model produces NaN or infinite logits; name another copy or dtype")
        write_bytes(PREDICTIONS, save(predicted.tensors()))
        return
    base = read_predictions(PREDICTIONS)
    answers = base.answers()
    with progress("Drift", len(prompts), "prompts") as advance:
        predicted = predictions(model, prompts, answers, batch_size, advance, base.likely())
    if not predicted.log_probabilities.isfinite().all():
        raise StageError(f"{ABLATED} produces NaN or infinite logits; try a smaller scale in params.yaml: ablate")
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    tokens = read_document(RefusalTokens, REFUSAL_TOKENS).numbers
    write_lines(DRIFT, drift_samples(drift_prompts, texts, base, predicted, tokens))


if __name__ == "__main__":
    run_stage(main)
