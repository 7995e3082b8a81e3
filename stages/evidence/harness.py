"""lm-eval, called through its Python API, with our tasks beside its own."""

import logging
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel

from schemas.artifacts import ChatFormat, Metrics, Sample
from schemas.params import Evaluate
from stages.base.progress import progress

TASKS = Path(__file__).parent / "tasks"


class _Quiet(HFLM):
    """lm-eval's own model, with our progress in the place of its bar, which cannot be turned off."""

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        with progress("Ask", len(requests), "samples") as self._advance:
            return super().generate_until(requests, disable_tqdm=True)

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **kwargs: Any) -> Any:
        generated = super()._model_generate(context, max_length, stop, **kwargs)
        self._advance(len(context))
        return generated


def run_tasks(
    model: PreTrainedModel, tokenizer: Any, params: Evaluate, chat: ChatFormat
) -> tuple[Metrics, dict[str, list[Sample]]]:
    """Ask the model every task of `evaluate`, greedily, with the chat template on.

    Returns:
        Group → task → metric → value, and the samples of each task.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    names: list[str] = [task for tasks in params.tasks().values() for task in tasks]
    if not names:
        return {group: {} for group in params.tasks()}, {}
    asked = _Quiet(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=params.batch_size,
        chat_template_args=dict(chat.chat_template_kwargs),
    )
    found = lm_eval.simple_evaluate(
        model=asked,
        tasks=list(names),
        limit=params.limit,
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
        apply_chat_template=True,
        system_instruction=chat.system,
        bootstrap_iters=0,
    )
    samples = {task: [_sample(raw) for raw in found["samples"][task]] for task in names}
    metrics: Metrics = {
        group: {
            task: {
                name.removesuffix(",none"): value
                for name, value in found["results"][task].items()
                if _is_metric(name, value)
            }
            for task in tasks
        }
        for group, tasks in params.tasks().items()
    }
    return metrics, samples


def _is_metric(name: str, value: Any) -> bool:
    return name.endswith(",none") and "_stderr" not in name and isinstance(value, float)


def _sample(raw: dict[str, Any]) -> Sample:
    document = raw["doc"]
    return Sample(
        id=document["id"],
        item=document["item"],
        prompt=document["prompt"],
        response=raw["filtered_resps"][0],
        metrics={name: float(raw[name]) for name in raw["metrics"]},
    )
