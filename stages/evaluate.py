"""Stage evaluate: one model, the base or the edited one → every answer with a verdict, metrics, the drift."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lm_eval.api.model import LM
from safetensors.torch import save
from transformers import PreTrainedModel

from excise.checkpoint.manifest import base_checkpoint, base_folder, read_config, read_manifest, verify
from excise.checkpoint.weights import read_checkpoint
from excise.evaluation.backends import Transformers, require_vllm, with_vllm
from excise.evaluation.catalogue import Asked, load_tasks
from excise.evaluation.drift import (
    DESCRIBED,
    drift_samples,
    drift_values,
    greedy_answers,
    predictions,
    read_predictions,
)
from excise.evaluation.harness import ask_all
from excise.evaluation.judging import judged, opens_reasoning
from excise.evaluation.overlap import Measured, leave_out, measured_prompts
from excise.evaluation.resume import Finished
from excise.inference.forward import FIRST_BATCH
from excise.inference.models import load_model, remote_code_is_trusted
from excise.inference.tokenizer import load_tokenizer
from excise.judges.choice import chosen_judge
from excise.plumbing.artifacts import read_document
from excise.plumbing.device import placement
from excise.plumbing.digests import sha256_of
from excise.plumbing.errors import StageError, run_stage
from excise.plumbing.files import write_bytes, write_json, write_text
from excise.plumbing.progress import progress
from excise.prompts.chats import PROMPTS_MANIFEST, chat_of, read_format, read_prompts, render, tokenize
from schemas.model import ModelManifest
from schemas.params.document import EvaluateSection
from schemas.params.section import read_settings
from schemas.prompts import ChatFormat, Prompt, PromptsManifest
from schemas.results import Results, Sample

RESULTS = Path("results")
ABLATED = Path("models/ablated")
PREDICTIONS = RESULTS / "base/predictions.safetensors"
MOST_DRIFT_PROMPTS = 400


def main() -> None:
    """Ask the tasks, judge the answers, and follow the base's own answers to harmless prompts."""
    side = sys.argv[1] if len(sys.argv) == 2 else ""
    if side not in ("base", "ablated"):
        raise StageError("say which model: python -m stages.evaluate base, or ablated")
    params = read_settings(EvaluateSection, Path("artifacts/params/evaluate.json"))
    manifest, chat, folder = read_manifest(), read_format(), ABLATED if side == "ablated" else base_folder()
    if side == "base":
        verify(folder, manifest)
    if params.backend == "vllm":
        require_vllm()
    tokenizer = load_tokenizer(folder, chat.date)
    reasoning = opens_reasoning(tokenizer, chat)
    tasks = load_tasks(params, read_config(folder).get("max_position_embeddings"), reasoning)
    refuse_descriptions(tasks, tokenizer, chat)
    left_out = leave_out(tasks, measured(), params.overlap)
    judge = chosen_judge(params)
    batch_size = first_batch(side, params)

    finished = Finished(side, what_answers_depend_on(side, folder, params, manifest, chat, batch_size))
    checkpoint = base_checkpoint(folder, manifest) if side == "base" else read_checkpoint(folder)
    if params.backend == "vllm":
        open_model: Callable[[], LM] = partial(with_vllm, checkpoint, manifest.dtype, tokenizer, chat, params.vllm)
        answered = ask_all(tasks, finished, chat, params.limit, open_model)
    # After vLLM has left the GPU.
    model = load_model(checkpoint, manifest.dtype, placement())
    if params.backend == "hf":
        open_model = partial(Transformers, model, tokenizer, chat, batch_size)
        answered = ask_all(tasks, finished, chat, params.limit, open_model)
    for asked in tasks:
        if asked.judged:
            answered[asked.name] = judged(answered[asked.name], judge, tokenizer, asked.group, reasoning)
    drift = follow_base(side, model, tokenizer, chat, batch_size)

    for task, found in answered.items():
        write_samples(side, task, found.samples)
    if drift:
        write_samples(side, "drift", drift)
    results = Results(
        metrics={group: {name: answered[name].values for name in names} for group, names in params.tasks().items()},
        described={**{name: found.described for name, found in answered.items()}, "drift": DESCRIBED},
        samples={task: len(found.samples) for task, found in answered.items()},
        left_out=left_out,
        batch_size=min([batch_size, *(found.batch_size or batch_size for found in answered.values())]),
        drift=drift_values(drift),
    )
    write_json(RESULTS / side / "results.json", results)
    finished.sweep(tasks)


def refuse_descriptions(tasks: list[Asked], tokenizer: Any, chat: ChatFormat) -> None:
    """Raises `StageError` where a task has a description, which lm-eval gives as a system message, and the chat
    template takes none: before the model is loaded."""
    described = [one.name for one in tasks if any(task.get_config("description") for task in one.tasks.values())]
    if described:
        try:
            render(tokenizer, chat_of(Prompt(id="", prompt="Hello"), "Answer the question."), chat)
        except StageError as error:
            raise StageError(f"{described[0]}: {error}") from None


def measured() -> Measured:
    """What must not be judged: the prompts that the direction was measured on, and those that edits were tried on."""
    manifest = read_document(PromptsManifest, PROMPTS_MANIFEST)
    return measured_prompts(
        {
            f"prompts.{side}: {origin.source}": [*read_prompts(side), *read_prompts(f"{side}_held_out")]
            for side, origin in (("harmful", manifest.harmful), ("harmless", manifest.harmless))
        }
    )


def what_answers_depend_on(
    side: str, folder: Path, params: EvaluateSection, manifest: ModelManifest, chat: ChatFormat, batch_size: int
) -> dict[str, Any]:
    """Everything but the task: where one of these differs, a task that was finished before is asked again."""
    weights = sha256_of(ABLATED / "edit.json") if side == "ablated" else manifest.model_dump()
    return {
        "model": weights,
        "dtype": manifest.dtype,
        "chat": chat.model_dump(),
        "batch_size": batch_size,
        "limit": params.limit,
        "backend": params.backend,
        "vllm": params.vllm.model_dump(),
        "place": str(placement()),
        "remote_code": remote_code_is_trusted(folder),
    }


def first_batch(side: str, params: EvaluateSection) -> int:
    """The batch to begin with: the edited model is asked in the base's, so that padding is the same for both."""
    if side == "ablated":
        return read_document(Results, RESULTS / "base/results.json").batch_size
    return FIRST_BATCH if params.batch_size == "auto" else params.batch_size


def write_samples(side: str, task: str, samples: list[Sample]) -> None:
    """One JSON object a line."""
    lines = "".join(sample.model_dump_json() + "\n" for sample in samples)
    write_text(RESULTS / side / f"samples/{task}.jsonl", lines)


def follow_base(side: str, model: PreTrainedModel, tokenizer: Any, chat: ChatFormat, batch_size: int) -> list[Sample]:
    """What the base answers to harmless prompts and finds likely there; for the edited model, how far it is from that.

    Raises:
        StageError: the model produces NaN or infinite logits.
    """
    asked = read_prompts("drift")[:MOST_DRIFT_PROMPTS]
    prompts = tokenize(tokenizer, asked, chat)
    if side == "base":
        with progress("Answers to be followed", len(prompts), "prompts") as advance:
            answers = greedy_answers(model, tokenizer, prompts, batch_size, advance)
        with progress("What the base predicts", len(prompts), "prompts") as advance:
            found = predictions(model, prompts, answers, batch_size, advance)
        if not found.log_probabilities.isfinite().all():
            raise StageError("the base model produces NaN or infinite logits; name another copy, or another dtype")
        write_bytes(PREDICTIONS, save(found.tensors()))
        return []
    base = read_predictions(PREDICTIONS)
    answers = base.answers()
    with progress("Follow the base", len(prompts), "prompts") as advance:
        found = predictions(model, prompts, answers, batch_size, advance, base.likely())
    if not found.log_probabilities.isfinite().all():
        raise StageError(f"{ABLATED} produces NaN or infinite logits; try a smaller scale in params.yaml: ablate")
    return drift_samples(asked, tokenizer.batch_decode(answers, skip_special_tokens=True), base, found)


if __name__ == "__main__":
    run_stage(main)
