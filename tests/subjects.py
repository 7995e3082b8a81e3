"""Tiny random models with made-up directions and prompts, ready to be traced and edited."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from excise.checkpoint.weights import read_checkpoint
from excise.diagnosis.contributions import Removal, Source, Trace, components, removals, trace
from excise.edit.checkpoint import write_edited
from excise.edit.directions import Measured
from excise.edit.projection import unit_vector
from excise.inference.forward import Batch, in_batches, run_decoder
from excise.residual.experts import routed_experts
from excise.trials.bench import Bench
from excise.trials.refusal import Questions
from schemas.params.ablate import Ablate
from tests.families import HIDDEN, VOCABULARY, layout_of, load, make

LAYERS = 4
HARMFUL = [[(7 * row + 3 * place) % VOCABULARY for place in range(3 + row)] for row in range(6)]
HARMLESS = [[(5 * row + 11 * place + 1) % VOCABULARY for place in range(8 - row)] for row in range(5)]


def numbers(seed: int, *shape: int) -> Tensor:
    """Normal random numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


DIRECTION = unit_vector(numbers(5, HIDDEN))
"""The direction of every measurement."""


class Subject:
    """One family's tiny model on disk and in memory, with all that a diagnosis needs."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.model: PreTrainedModel = make(name, folder)
        layout = layout_of(folder)
        self.layout = layout.family
        self.bench = Bench(
            layout=layout,
            base=read_checkpoint(folder),
            reasons=[None] * (LAYERS + 1),
            measured=Measured(DIRECTION.expand(LAYERS + 1, -1), torch.zeros(LAYERS + 1, HIDDEN, dtype=torch.float64)),
            log_odds={},
            questions=Questions(self.model, HARMFUL, HARMLESS),
        )
        self.components = components(self.model, layout, self.bench.base.tensors)

    @property
    def is_routed(self) -> bool:
        """Whether any layer has routed experts."""
        return bool(routed_experts(self.model, self.layout))

    def trace(self, removed: dict[Source, list[Removal]] | None = None, prompts: list[list[int]] = HARMFUL) -> Trace:
        """The stream and all writes along the direction."""
        return trace(self.model, self.layout, self.components, DIRECTION, removed or {}, prompts, lambda _: None)

    def removals(self, ablate: Ablate) -> dict[Source, list[Removal]]:
        """What an edit takes out of each writer."""
        return removals(*self.bench.plan(ablate))

    def write(self, ablate: Ablate, target: Path) -> PreTrainedModel:
        """The edited model, by way of the disk."""
        plan, pairs = self.bench.plan(ablate)
        keep = ablate.method == "preserve_column_norms"
        write_edited(self.bench.base, target, plan, pairs, keep, {}, torch.device("cpu"), lambda _: None)
        return load(self.name, target)


def rules(method: str = "project", through_norm: str = "orthogonal", **rule: object) -> Ablate:
    """An edit of all layers by one rule."""
    given = [{"layers": "all", "measurement": 2, **rule}]
    return Ablate.model_validate({"method": method, "through_norm": through_norm, "allow_tied": True, "rules": given})


def run(model: PreTrainedModel, watch: Callable[[Batch, ExitStack], None], prompts: list[list[int]] = HARMFUL) -> None:
    """All prompts through the model, with the hooks that `watch` sets for each batch."""

    def compute(batch: Batch) -> None:
        with ExitStack() as undo:
            watch(batch, undo)
            run_decoder(model, batch)

    with torch.inference_mode():
        in_batches(prompts, "auto", lambda _: None, compute)
