"""Edits tried on the loaded model, by simulation: what each of them would do, before any byte is written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from excise.checkpoint.base_model import BaseModel
from excise.edit.planning.plan import CannotEdit, Edit, make_plan
from excise.edit.planning.projectors import Directions
from excise.trials.refusal import Outcome, Questions
from excise.trials.simulation import simulated
from schemas.params.ablate import Ablate, Rule

BLOCKS = 8
"""Into how many blocks of layers a model is cut at most: every run of blocks is tried."""


@dataclass(frozen=True)
class Bench:
    """A base model with its directions, on which edits of tensors are tried; routers' biases are left as they are."""

    base: BaseModel
    directions: Directions
    questions: Questions

    def plan(self, ablate: Ablate) -> list[Edit]:
        """What is edited. Raises `StageError` where the model lacks what a rule names, or cannot be edited so."""
        return make_plan(ablate, self.base, self.directions)

    def outcome(self, ablate: Ablate) -> Outcome:
        """What the edited model would answer. Raises as `plan` does."""
        with simulated(self.questions.model, self.plan(ablate)):
            return self.questions.ask()

    def attempt(self, ablate: Ablate) -> Outcome | None:
        """The same, or None where this model does not take such an edit, or the edited model's logits are not finite.
        What else `plan` raises is raised: a norm that holds NaN is not an edit that was not tried."""
        try:
            outcome = self.outcome(ablate)
        except CannotEdit:
            return None
        return outcome if outcome.is_finite else None


def with_rules(ablate: Ablate, rules: Sequence[Mapping[str, Any]]) -> Ablate:
    """The same edit with other rules, as params.yaml would write them."""
    return ablate.model_copy(update={"rules": tuple(Rule.model_validate(rule) for rule in rules)})


def with_scales(ablate: Ablate, change: Callable[[float], float]) -> Ablate:
    """The same edit with the scale of every rule changed."""
    rules = tuple(rule.model_copy(update={"scale": change(rule.scale)}) for rule in ablate.rules)
    return ablate.model_copy(update={"rules": rules})


def layer_ranges(layers: int) -> list[tuple[int, int]]:
    """Every run of neighbouring blocks of layers, as its first and last layer; small models have a block a layer."""
    blocks = min(layers, BLOCKS)
    bounds = [layers * block // blocks for block in range(blocks + 1)]
    return [(first, stop - 1) for first, stop in combinations(bounds, 2)]
