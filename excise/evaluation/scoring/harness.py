"""Scoring a model's responses with lm-eval's Python API: every metric, and each sample's values for it."""

import math
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import Task
from transformers import set_seed

from excise.evaluation.asking.answers import Side, request_digest, responses_file
from excise.evaluation.asking.catalogue import LONGEST_ANSWER, SEED, ListedTask
from excise.plumbing.aggregations import AGGREGATIONS, aggregate, as_values
from excise.plumbing.errors import StageError
from excise.plumbing.files import read_lines, unreadable
from excise.plumbing.private.lm_eval import name_of
from excise.prompts.chats import render
from schemas.prompts import ChatFormat
from schemas.results import Aggregation, Metric, Response, Sample

SCORES_FOLDER = Path(__file__).parent / "scores"
"""Our tasks, with scoring."""
DRIFT_METRICS = {
    "first_token_kl": Metric(aggregation="mean", higher_is_better=False),
    "first_token_kl_without_refusal": Metric(aggregation="mean", higher_is_better=False),
    "answer_kl": Metric(aggregation="ratio", higher_is_better=False),
    "top1_agreement": Metric(aggregation="ratio", higher_is_better=True),
    "perplexity_ratio": Metric(aggregation="exp_ratio", higher_is_better=False),
}
"""KL(base‖edited) in nats, of the first or per token of the answer; agreement; perplexity, edited over base."""

T = TypeVar("T")
Raw = dict[str, Any]
"""One sample as lm-eval logs it, once for each of the task's filters."""


class Recording(LM):
    """Replaces a model by its recorded responses."""

    tokenizer_name = ""
    batch_size = None

    def __init__(self, tokenizer: Any, chat: ChatFormat) -> None:
        super().__init__()
        self._tokenizer, self._chat = tokenizer, chat

    @abstractmethod
    def responses(self, requests: list[Instance]) -> list[Any]:
        """The recorded responses. Raises `StageError`: other requests were recorded."""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return render(self._tokenizer, chat_history, self._chat, begun=not add_generation_prompt)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Any]:
        return self.responses(requests)

    loglikelihood = loglikelihood_rolling = generate_until


class Replay(Recording):
    """Responses from the file of the stage `answer`."""

    def __init__(self, side: Side, task: str, count: int | None, tokenizer: Any, chat: ChatFormat) -> None:
        """`count`: the responses that answers.json counts. Raises `StageError`: the file is damaged."""
        super().__init__(tokenizer, chat)
        self._side, self._file = side, responses_file(side, task)
        self._responses: dict[str, list[Any]] = {}
        """By digest of the request, one for each time that it was asked."""
        lines = read_lines(Response, self._file)
        if len(lines) != count:
            raise unreadable(self._file, f"holds {len(lines)} responses, but answers.json counts {count or 0}")
        for line in lines:
            self._responses.setdefault(line.request, []).append(line.response)

    def responses(self, requests: list[Instance]) -> list[Any]:
        try:
            return [self._responses[request_digest(request)].pop(0) for request in requests]
        except LookupError:
            raise StageError(
                f"{self._file} holds responses to other requests; run `dvc repro answer@{self._side}`"
            ) from None


@dataclass(frozen=True)
class Scored:
    samples: list[Sample]
    values: dict[str, float]
    """By metric."""
    described: dict[str, Metric]
    longest_answer: int
    """Tokens after which answers are cut."""


def score(lm: LM, task: ListedTask, chat: ChatFormat) -> Scored:
    """Score the responses of a model, or of what replaces it, to the samples of a task."""
    set_seed(SEED)
    evaluated = lm_eval.evaluate(
        lm=lm,
        task_dict=task.loaded,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        system_instruction=chat.system,
        bootstrap_iters=0,
    )
    parts, results = list(task.parts.values()), evaluated["results"][task.name]
    samples = [
        sample
        for name, part in task.parts.items()
        for sample in _samples(part, evaluated["samples"][name], f"{name}/" if len(parts) > 1 else "")
    ]
    values = {
        _metric_name(key, results): float(value)
        for key, value in results.items()
        if "," in key and "_stderr," not in key and type(value) is not bool and isinstance(value, float | int)
    }
    better = evaluated["higher_is_better"].get(task.name, {})
    described = {
        name: Metric(aggregation=_aggregation(name, value, samples, parts), higher_is_better=_own(better, name))
        for name, value in values.items()
    }
    return Scored(
        samples=[_resampled_only(sample, described) for sample in samples],
        values=values,
        described=described,
        longest_answer=max((part.config.generation_kwargs or {}).get("max_gen_toks", LONGEST_ANSWER) for part in parts),
    )


def drift_values(samples: Sequence[Sample]) -> dict[str, float]:
    """The value of each metric of ``DRIFT_METRICS``; empty without samples."""
    return {
        name: aggregate(metric.aggregation, as_values([sample.metrics[name] for sample in samples]))
        for name, metric in DRIFT_METRICS.items()
        if samples and metric.aggregation is not None
    }


def _metric_name(key: str, keys: Any) -> str:
    """From lm-eval's `metric,filter`: the metric, and the filter only if the task has several for this metric."""
    metric, _, filter_name = key.partition(",")
    several = sum(other.startswith(f"{metric},") for other in keys) > 1
    return re.sub(r"[^A-Za-z0-9_]", "_", f"{metric}_{filter_name}" if several else metric)


def _own(metrics: Mapping[str, T], name: str) -> T | None:
    """A task's entry for a metric, whose name may end with that of a filter."""
    if name in metrics:
        return metrics[name]
    return next((entry for metric, entry in metrics.items() if name.startswith(f"{metric}_")), None)


def _samples(task: Task, logged: Sequence[Raw], prefix: str) -> Iterator[Sample]:
    """One sample for each document, which lm-eval logs once per filter."""
    cluster = (task.config.metadata or {}).get("cluster")
    keys = {f"{metric},{raw['filter']}" for raw in logged for metric in raw["metrics"]}
    by_document: dict[int, list[Raw]] = {}
    for raw in logged:
        by_document.setdefault(raw["doc_id"], []).append(raw)
    for number, raws in by_document.items():
        document = raws[0]["doc"]
        item, text = document.get(cluster) if cluster else None, task.doc_to_text(document)
        yield Sample(
            id=f"{prefix}{document.get('id', number) if cluster else number}",
            item=None if item is None else f"{prefix}{item}",
            prompt=text if isinstance(text, str) else str(raws[0]["arguments"][0][0]),
            response=_response(task, raws[0]),
            verdict=None,
            metrics={
                _metric_name(f"{metric},{raw['filter']}", keys): _numbers(raw[metric])
                for raw in raws
                for metric in raw["metrics"]
            },
        )


def _response(task: Task, raw: Raw) -> str:
    if task.OUTPUT_TYPE == "generate_until":
        return str(raw["resps"][0][0])
    if task.OUTPUT_TYPE == "multiple_choice":
        likelihoods = [response[0] for response in raw["filtered_resps"]]
        return str(raw["arguments"][likelihoods.index(max(likelihoods))][1]).strip()
    return ""


def _numbers(value: Any) -> float | list[float]:
    """A sample's value as numbers; empty for other values, such as texts that are compared as a whole."""
    try:
        return [float(number) for number in value] if isinstance(value, list | tuple) else float(value)
    except (TypeError, ValueError):
        return []


def _aggregation(name: str, value: float, samples: Sequence[Sample], tasks: Sequence[Task]) -> Aggregation | None:
    """How the value is computed from the samples; None if that is unknown or gives another number."""
    is_value = partial(math.isclose, value, rel_tol=1e-9, abs_tol=1e-12)
    per_sample = [sample.metrics.get(name, []) for sample in samples]
    if [] in per_sample:
        return None
    functions = {_own(task.aggregation(), name) for task in tasks}
    known = name_of(functions.pop(), AGGREGATIONS) if len(functions) == 1 else None
    alike = len({len(entry) if isinstance(entry, list) else 1 for entry in per_sample}) == 1
    if known and alike and is_value(aggregate(known, as_values(per_sample))):
        return known
    # The mean over all numbers of all samples, such as the share of followed instructions.
    numbers = [number for entry in per_sample for number in (entry if isinstance(entry, list) else [entry])]
    if not numbers or not is_value(sum(numbers) / len(numbers)):
        return None
    return "ratio" if any(isinstance(entry, list) for entry in per_sample) else "mean"


def _resampled_only(sample: Sample, described: dict[str, Metric]) -> Sample:
    kept: dict[str, float | list[float]] = {}
    for name, metric in described.items():
        value = sample.metrics.get(name)
        if metric.aggregation == "ratio" and value is not None:
            numbers = value if isinstance(value, list) else [value]
            kept[name] = [sum(numbers), float(len(numbers))]
        elif metric.aggregation is not None and value is not None:
            kept[name] = value
    return sample.model_copy(update={"metrics": kept})
