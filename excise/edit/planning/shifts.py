"""Shifts of routers' biases, which change the choice of experts. A shift is not a projection and has no direction."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import ClassVar

import torch

from excise.checkpoint.base_model import BaseModel
from excise.checkpoint.weights import Tensor
from excise.edit.planning.layout import expert_count, sort_by_layer, variants_of
from excise.edit.planning.plan import CannotEdit, Edit, layers_of
from excise.plumbing.errors import StageError
from schemas.directions import ExpertUse
from schemas.edit import BiasShift, PlanRow
from schemas.model import RouterBias
from schemas.params.ablate import Ablate

KEY = "params.yaml: ablate.router_bias"

_DIGITS = Context(prec=50)  # so many that the result depends neither on the machine's math library nor on roundings


@dataclass(frozen=True)
class Shift:
    """What is added to one router's bias."""

    role: ClassVar[str] = "router_bias"
    experts: ClassVar[None] = None
    tensor: str
    file: str
    layer: int
    bias: RouterBias
    added: torch.Tensor  # [experts] float64, in the units of the router's scores

    def record(self) -> BiasShift:
        selects_only, added = self.bias.selects_only, self.added.tolist()
        return BiasShift(tensor=self.tensor, file=self.file, layer=self.layer, selects_only=selects_only, added=added)


def make_shifts(ablate: Ablate, base: BaseModel, use_odds: Mapping[int, torch.Tensor]) -> list[Shift]:
    """Minus `strength` times the log-odds of each expert's use, for every router of the layers that the rules name, in
    order; none if `router_bias` is null or its strength 0. `use_odds` are as from `odds_by_layer`. Raises `CannotEdit`:
    these layers have no routed experts, or a router without a bias; `StageError`: a bias has another shape."""
    if ablate.router_bias is None:
        return []
    layout, by_layer, shifts = base.layout, sort_by_layer(base.layout, base.tensors), []
    this_model = f"this {layout.model_type} model"
    named = (layers_of(rule, f"params.yaml: ablate.rules.{n}", layout) for n, rule in enumerate(ablate.rules))
    for layer in sorted({layer for layers in named for layer in layers}):
        names = by_layer[layer]
        for variant in variants_of(layout, layer, names):
            if all(writer.role != "routed_experts" for writer in variant.writers):
                continue
            bias = variant.router_bias
            if bias is None or bias.weight not in names:
                raise CannotEdit(f"{KEY}: the router in layer {layer} of {this_model} has no bias; write null")
            name, experts = names[bias.weight], expert_count(layout)
            tensor = base.tensors[name]
            if tensor.shape != (experts,):
                raise StageError(f"{name} has shape {list(tensor.shape)}, not one number for each of {experts} experts")
            # A change of sign would give -0.0 instead of 0.0.
            added = 0 - ablate.router_bias.strength * use_odds[layer]
            shifts.append(Shift(name, tensor.file, layer, bias, added))
    if not shifts:
        raise CannotEdit(f"{KEY}: the layers of the rules have no routed experts in {this_model}; write null")
    return shifts if ablate.router_bias.strength else []


def add(bias: torch.Tensor, added: torch.Tensor) -> None:
    """Add to a bias ``[experts]`` of any float type, in place; computed in float64 and rounded as in `project`."""
    bias.copy_(bias.double() + added.to(bias.device))


def odds_by_layer(use: ExpertUse) -> dict[int, torch.Tensor]:
    """The log-odds of each routed expert's measured use, ``[experts]`` float64."""
    return {
        row.layer: odds_of_use(
            torch.tensor(row.harmful), use.harmful_prompts, torch.tensor(row.harmless), use.harmless_prompts
        )
        for row in use.layers
    }


def odds_of_use(
    harmful_counts: torch.Tensor, harmful_prompts: int, harmless_counts: torch.Tensor, harmless_prompts: int
) -> torch.Tensor:
    """The log-odds of use on harmful against harmless prompts, in nats: log((h + ½) / (H − h + ½)) − log((b + ½) /
    (B − b + ½)), where h of H harmful and b of B harmless prompts use the expert (Haldane-Anscombe correction: finite
    for an expert that one kind of prompts always or never uses). Counts are integers of any shape; the result is
    float64 of the same shape, correctly rounded."""

    def odds(harmful: int, harmless: int) -> float:
        # Both logarithms as one, of a ratio of integers: all halves are doubled.
        numerator = (2 * harmful + 1) * (2 * (harmless_prompts - harmless) + 1)
        denominator = (2 * (harmful_prompts - harmful) + 1) * (2 * harmless + 1)
        return float(_DIGITS.ln(_DIGITS.divide(Decimal(numerator), Decimal(denominator))))

    counts = zip(harmful_counts.flatten().tolist(), harmless_counts.flatten().tolist(), strict=True)
    return torch.tensor([odds(*pair) for pair in counts], dtype=torch.float64).view(harmful_counts.shape)


def summary(changes: Sequence[Edit | Shift], tensors: Mapping[str, Tensor]) -> list[PlanRow]:
    """A plan by role: how many tensors, in which layers, and how much of them."""
    rows = []
    for role in dict.fromkeys(change.role for change in changes):
        of_role = [change for change in changes if change.role == role]
        edited = [(tensors[change.tensor], change.experts) for change in of_role]
        parts = [(tensor, 1.0 if some is None else len(some) / tensor.shape[0]) for tensor, some in edited]
        rows.append(
            PlanRow(
                role=role,
                tensors=len({change.tensor for change in of_role}),
                layers=sorted({change.layer for change in of_role if change.layer is not None}),
                parameters=sum(round(share * math.prod(tensor.shape)) for tensor, share in parts),
                bytes=sum(round(share * (tensor.stop - tensor.start)) for tensor, share in parts),
            )
        )
    return rows
