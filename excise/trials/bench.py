"""Edits tried on the loaded model, by simulation: what each range of layers and each scale would do."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from excise.checkpoint.weights import Checkpoint
from excise.diagnosis.contributions import Source, Trace
from excise.edit.checkpoint import read_vector
from excise.edit.directions import CannotEdit, Measured
from excise.edit.pairing import make_pairs
from excise.edit.plan import Edit, make_plan
from excise.edit.projection import Pair
from excise.edit.shifts import Shift, make_shifts
from excise.residual.activations import activations
from excise.trials.refusal import Outcome, Questions
from excise.trials.simulation import simulated
from schemas.layout import ModelLayout
from schemas.params.ablate import Ablate, Rule, Target

BLOCKS = 8
"""Into how many blocks of layers a model is cut at most: every run of blocks is tried."""


@dataclass(frozen=True)
class Bench:
    """A base model with its directions, on which edits are tried."""

    layout: ModelLayout
    base: Checkpoint
    reasons: Sequence[str | None]
    """For each measurement, why it has no direction."""
    measured: Measured
    log_odds: Mapping[int, Tensor]
    """By layer with routed experts, of each one's use on harmful against harmless prompts."""
    questions: Questions

    def plan(self, ablate: Ablate) -> tuple[list[Edit], list[Pair]]:
        """The edits and what each takes out.

        Raises:
            StageError: the model does not have what a rule names, or cannot be edited so.
        """
        plan = make_plan(ablate, self.layout, self.base.tensors, self.reasons)
        return plan, make_pairs(plan, ablate, self.measured, lambda name: read_vector(self.base, name))

    def shifts(self, ablate: Ablate) -> list[Shift]:
        """What is added to routers' biases. Raises as `plan` does."""
        return make_shifts(ablate, self.layout, self.base.tensors, self.log_odds)

    @contextmanager
    def edited(self, ablate: Ablate) -> Iterator[None]:
        """Within the block, the model behaves as if it had been edited. Raises as `plan` does."""
        keep = ablate.method == "preserve_column_norms"
        with simulated(self.questions.model, *self.plan(ablate), keep, self.shifts(ablate)):
            yield

    def outcome(self, ablate: Ablate) -> Outcome:
        """What the edited model would answer. Raises as `plan` does."""
        with self.edited(ablate):
            return self.questions.ask()

    def attempt(self, ablate: Ablate) -> Outcome | None:
        """The same, or None where this model does not take such an edit, or the edited model answers with what is no
        number. What else `plan` raises is raised: a norm that holds NaN is no edit that was not tried."""
        with ExitStack() as undo:
            try:
                undo.enter_context(self.edited(ablate))
            except CannotEdit:
                return None
            outcome = self.questions.ask()
        return outcome if outcome.is_finite else None

    def projections(self, ablate: Ablate, direction: Tensor) -> tuple[Tensor, Tensor]:
        """The edited model's stream along a direction: of harmful and of harmless prompts.

        Returns:
            Each ``[prompts, layers + 1]`` float64.
        """
        sides = self.questions.harmful, self.questions.harmless
        with self.edited(ablate):
            streams = activations(self.questions.model, [*sides[0], *sides[1]], -1, "auto", lambda _: None)
        along = streams.double() @ direction
        return along[: len(sides[0])], along[len(sides[0]) :]


def with_rules(ablate: Ablate, rules: Sequence[Mapping[str, Any]]) -> Ablate:
    """The same edit with other rules, as params.yaml would write them."""
    return ablate.model_copy(update={"rules": tuple(Rule.model_validate(rule) for rule in rules)})


def at_scale(ablate: Ablate, scale: float) -> Ablate:
    """The same edit with every rule at one scale, but for rules of scale 0: those exempt what earlier ones name. Where
    all are of scale 0 none has anything to exempt."""
    exempts = any(rule.scale != 0 for rule in ablate.rules)
    rules = [rule if exempts and rule.scale == 0 else rule.model_copy(update={"scale": scale}) for rule in ablate.rules]
    return ablate.model_copy(update={"rules": tuple(rules)})


def targets_of(ablate: Ablate) -> list[Target]:
    """All that the rules edit, of any layer."""
    rules = [rule for rule in at_scale(ablate, 1.0).rules if rule.scale != 0]
    return list(dict.fromkeys(target for rule in rules for target in ablate.targets_of(rule)))


def layer_ranges(layers: int) -> list[tuple[int, int]]:
    """Every run of neighbouring blocks of layers, as its first and last layer; small models have a block a layer."""
    blocks = min(layers, BLOCKS)
    bounds = [layers * block // blocks for block in range(blocks + 1)]
    starts_and_stops = list(pairwise(bounds))
    return [
        (first, stop - 1) for place, (first, _) in enumerate(starts_and_stops) for _, stop in starts_and_stops[place:]
    ]


@dataclass(frozen=True)
class Direct:
    """What an edit would leave of the difference between the two sides along the direction, in the last measurement,
    if every input stayed as it is, and whatever a norm divides by. Of projections of writers alone."""

    whole: float
    """The difference without an edit."""
    removed: float
    """What a scale of 1 takes out of it."""
    left_out: float
    """What of it is due to writers that the rules leave out, and to the embedding."""

    def remainder(self, scale: float) -> float:
        """The difference that is left at a scale."""
        return self.whole - scale * self.removed


def direct_effect(harmful: Trace, harmless: Trace) -> Direct:
    """Add up what was traced: each write, times what later layers multiply the stream by."""
    whole = float(harmful.stream[:, -1].mean() - harmless.stream[:, -1].mean())
    removed = covered = 0.0
    for source in harmful.writes:
        reach = harmful.reach(source[0])
        removed += reach * _difference(harmful, harmless, source, "removed")
        covered += reach * _difference(harmful, harmless, source, "covered")
    return Direct(whole=whole, removed=removed, left_out=whole - covered)


def _difference(harmful: Trace, harmless: Trace, source: Source, of: str) -> float:
    sides: list[Tensor] = [getattr(side.writes[source], of) for side in (harmful, harmless)]
    return float(torch.mean(sides[0]) - torch.mean(sides[1]))
