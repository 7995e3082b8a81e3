"""Edits as trials of a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from excise.checkpoint.base_model import BaseModel
from excise.edit.planning.plan import CannotEdit, Edit, make_plan
from excise.edit.planning.projectors import Directions
from excise.trials.changes import Trial, of_edits
from excise.trials.questions import Questions
from schemas.params.ablate import Ablate, Rule

BLOCKS = 8
"""Blocks of layers at most; every range of blocks is tried."""


@dataclass(frozen=True)
class Bench:
    """A base model and its directions, on which edits of tensors are tried, without shifts of routers' biases."""

    base: BaseModel
    directions: Directions
    questions: Questions

    def plan(self, ablate: Ablate) -> list[Edit]:
        """The plan of the edit. Raises `StageError`: the model lacks what a rule names, or cannot be edited so."""
        return make_plan(ablate, self.base, self.directions)

    def trial(self, ablate: Ablate) -> Trial | None:
        """The edit as a trial; None where this model cannot be edited so. Raises other errors of `plan`: a model that
        is damaged, such as by NaN in a norm, must not look like an edit that fails."""
        try:
            return of_edits(self.questions.model, self.plan(ablate))
        except CannotEdit:
            return None


def with_rules(ablate: Ablate, rules: Sequence[Mapping[str, Any]]) -> Ablate:
    """The same edit with other rules, written as in params.yaml."""
    return ablate.model_copy(update={"rules": tuple(Rule.model_validate(rule) for rule in rules)})


def with_scales(ablate: Ablate, change: Callable[[float], float]) -> Ablate:
    rules = tuple(rule.model_copy(update={"scale": change(rule.scale)}) for rule in ablate.rules)
    return ablate.model_copy(update={"rules": rules})


def layer_ranges(layers: int) -> list[tuple[int, int]]:
    """Every range of adjacent blocks, as its first and last layer; in small models each layer is a block."""
    blocks = min(layers, BLOCKS)
    bounds = [layers * block // blocks for block in range(blocks + 1)]
    return [(first, stop - 1) for first, stop in combinations(bounds, 2)]
