"""Tiny random models with made-up directions and prompts, ready to be traced and edited."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from excise.edit.checkpoint import write_edited
from excise.edit.planning.plan import Edit
from excise.edit.planning.projectors import Directions, unit_vector
from excise.inference.forward import (
    Batch,
    Watch,
    first_token_log_probabilities,
    in_batches,
    kl,
    kl_without,
    no_hooks,
    run_decoder,
)
from excise.inference.passes import Passes
from excise.residual.activations import collect_activations
from excise.residual.contributions import Trace, components
from excise.residual.experts import routed_experts
from excise.trials.bench import Bench
from excise.trials.questions import Questions, questions_of
from excise.trials.refusal import Outcome, beginnings
from excise.trials.simulation import simulated
from schemas.directions import MeasurementStatistics
from schemas.params.ablate import Ablate
from tests.families import FAMILIES, HIDDEN, VOCABULARY, base_of, load, make

LAYERS = 4
HARMFUL = [[(7 * row + 3 * place) % VOCABULARY for place in range(3 + row)] for row in range(6)]
HARMLESS = [[(5 * row + 11 * place + 1) % VOCABULARY for place in range(8 - row)] for row in range(5)]


def numbers(seed: int, *shape: int) -> Tensor:
    """Normal random numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


DIRECTION = unit_vector(numbers(5, HIDDEN))
"""The direction of every measurement."""


NORM = 2.5
"""Of the difference of means at each measurement that has a direction: all but the first."""


def statistics() -> list[MeasurementStatistics]:
    """What the measure stage would say of them."""
    unknown = {name: None for name in MeasurementStatistics.model_fields if name not in ("measurement", "warnings")}
    return [
        MeasurementStatistics.model_validate(
            {**unknown, "measurement": number, "norm": NORM, "reason": "nothing" if number == 0 else None}
            | {"relative_norm": number / 8, "warnings": []}
        )
        for number in range(LAYERS + 1)
    ]


class Subject:
    """One family's tiny model on disk and in memory, with all that a diagnosis needs."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.model: PreTrainedModel = make(name, folder)
        base = base_of(folder)
        self.layout = base.layout.family
        means = torch.zeros(LAYERS + 1, HIDDEN, dtype=torch.float64)
        reasons = ("nothing", *(None,) * LAYERS)
        directions = Directions(DIRECTION.expand(LAYERS + 1, -1), means, reasons)
        self.bench = Bench(base, directions, questions_of(self.model, HARMFUL, HARMLESS))
        self.components = components(self.model, base)

    @property
    def is_routed(self) -> bool:
        """Whether any layer has routed experts."""
        return bool(routed_experts(self.model, self.layout))

    def trace(self, edits: Sequence[Edit] = (), prompts: list[list[int]] = HARMFUL) -> Trace:
        """The stream and all writes along the direction."""
        return Trace(self.model, self.layout, self.components, DIRECTION, prompts, edits).run()

    def projections(self, ablate: Ablate) -> tuple[Tensor, Tensor]:
        """The simulated model's stream along the direction, ``[prompts, layers + 1]``, of prompts of each kind."""
        with simulated(self.model, self.bench.plan(ablate)):
            harmful, harmless = (stream(self.model, prompts).double() @ DIRECTION for prompts in (HARMFUL, HARMLESS))
        return harmful, harmless

    def write(self, ablate: Ablate, target: Path) -> PreTrainedModel:
        """The edited model, by way of the disk."""
        write_edited(self.bench.base, target, self.bench.plan(ablate), [], torch.device("cpu"), lambda _: None)
        return load(self.name, target)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Each family's tiny model, for the tests of folders whose conftest imports this. Not to be changed."""
    return Subject(request.param, tmp_path_factory.mktemp(request.param))


def outcome(subject: Subject, ablate: Ablate) -> Outcome:
    """What the edited model answers, in whole passes."""
    with simulated(subject.model, subject.bench.plan(ablate)):
        return ask(subject.bench.questions)


def ask(questions: Questions, watch: Watch = no_hooks) -> Outcome:
    """What the model answers as it now is, in whole passes under hooks."""
    base = questions._base_answers
    harmful, harmless = (
        first_token_log_probabilities(questions.model, prompts, "auto", lambda _: None, watch)
        for prompts in questions.prompts.values()
    )
    drift = kl(base, harmless), kl_without(base, harmless, questions.tokens)
    return Outcome(beginnings(harmful, questions.tokens), beginnings(harmless, questions.tokens), *drift)


def stream(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    position: int = -1,
    batch_size: int | Literal["auto"] = "auto",
    advance: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """The stream at one token of each prompt, ``[prompts, layers + 1, hidden]`` float32."""
    return collect_activations(Passes(model), {}, prompts, position, batch_size, advance).stream


def mean_kl(base: Tensor, edited: Tensor) -> float:
    """The mean over prompts of KL(base‖edited) of two ``[prompts, vocabulary]`` log-probabilities."""
    return float(kl(base, edited).mean())


def rules(method: str = "project", through_norm: str = "orthogonal", **rule: object) -> Ablate:
    """An edit of all layers by one rule, along the difference of means itself."""
    given = [{"layers": "all", "measurement": 2, **rule}]
    settings = {"method": method, "through_norm": through_norm, "orthogonalize": "none", "allow_tied": True}
    return Ablate.model_validate({**settings, "rules": given})


def run(model: PreTrainedModel, watch: Callable[[Batch, ExitStack], None], prompts: list[list[int]] = HARMFUL) -> None:
    """All prompts through the model, with the hooks that `watch` sets for each batch."""

    def compute(batch: Batch) -> None:
        with ExitStack() as undo:
            watch(batch, undo)
            run_decoder(model, batch)

    with torch.inference_mode():
        in_batches(prompts, "auto", lambda _: None, compute)
