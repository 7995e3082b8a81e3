"""Moving what routers choose: what is added to each router's bias. It is not a projection and has no direction."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal

import torch

from excise.checkpoint.base_model import BaseModel
from excise.checkpoint.weights import Tensor
from excise.edit.planning.layout import expert_count, sort_by_layer, variants_of
from excise.edit.planning.plan import CannotEdit, layers_of
from excise.plumbing.errors import StageError
from schemas.directions import ExpertUse
from schemas.edit import BiasShift, PlanRow
from schemas.model import RouterBias
from schemas.params.ablate import Ablate

KEY = "params.yaml: ablate.router_bias"

# A float64 has 17 digits. Neither the mathematics library, whose last bit differs between machines, nor the order of
# two roundings decides the result.
_DIGITS = Context(prec=50)


@dataclass(frozen=True)
class Shift:
    """What is added to one router's bias."""

    tensor: str
    file: str
    layer: int
    bias: RouterBias
    added: torch.Tensor
    """``[experts]`` float64, in the units of the router's scores."""

    def record(self) -> BiasShift:
        """As it stands in edit.json."""
        return BiasShift(
            tensor=self.tensor,
            file=self.file,
            layer=self.layer,
            selects_only=self.bias.selects_only,
            added=self.added.tolist(),
        )


def make_shifts(ablate: Ablate, base: BaseModel, use_odds: Mapping[int, torch.Tensor]) -> list[Shift]:
    """Minus `strength` times the log-odds of each expert's use, for every router of the layers that the rules name.

    Args:
        use_odds: by layer with routed experts, the log-odds of each one's use, ``[experts]`` float64.

    Returns:
        One a layer, in their order; none where `router_bias` is null or its strength 0.

    Raises:
        CannotEdit: these layers have no routed experts, or a router without a bias.
        StageError: a bias is not one number an expert.
    """
    if ablate.router_bias is None:
        return []
    layout, by_layer = base.layout, sort_by_layer(base.layout, base.tensors)
    shifts = []
    for layer in sorted({layer for n, rule in enumerate(ablate.rules) for layer in layers_of(rule, n, layout)}):
        names = by_layer[layer]
        for variant in variants_of(layout, layer, names):
            if all(writer.role != "routed_experts" for writer in variant.writers):
                continue
            bias = variant.router_bias
            if bias is None or bias.weight not in names:
                raise CannotEdit(
                    f"{KEY}: the router in layer {layer} of this {layout.model_type} model has no bias; write null"
                )
            tensor = base.tensors[names[bias.weight]]
            if tensor.shape != (experts := expert_count(layout),):
                raise StageError(
                    f"{names[bias.weight]} has shape {list(tensor.shape)}, but there are {experts} experts"
                )
            # 0 minus, and not a change of sign: what is not moved is moved by 0.0.
            added = 0 - ablate.router_bias.strength * use_odds[layer]
            shifts.append(Shift(names[bias.weight], tensor.file, layer, bias, added))
    if not shifts:
        raise CannotEdit(
            f"{KEY}: the layers that the rules name have no routed experts in this {layout.model_type} model; "
            "write null"
        )
    return shifts if ablate.router_bias.strength else []


def add(bias: torch.Tensor, added: torch.Tensor) -> None:
    """Add to a bias ``[experts]`` of any float type, in place: in float64, then rounded by way of float32, as every
    edit is."""
    bias.copy_(bias.double() + added.to(bias.device))


def summary_of_shifts(shifts: Sequence[Shift], tensors: Mapping[str, Tensor]) -> list[PlanRow]:
    """All of them as one row of a plan's summary; no row for none."""
    if not shifts:
        return []
    touched = [tensors[shift.tensor] for shift in shifts]
    return [
        PlanRow(
            role="router_bias",
            tensors=len(shifts),
            layers=[shift.layer for shift in shifts],
            parameters=sum(math.prod(tensor.shape) for tensor in touched),
            bytes=sum(tensor.stop - tensor.start for tensor in touched),
        )
    ]


def odds_by_layer(use: ExpertUse) -> dict[int, torch.Tensor]:
    """The log-odds of each routed expert's use as it was measured, ``[experts]`` float64."""
    return {
        row.layer: odds_of_use(
            torch.tensor(row.harmful), use.harmful_prompts, torch.tensor(row.harmless), use.harmless_prompts
        )
        for row in use.layers
    }


def odds_of_use(
    harmful_counts: torch.Tensor, harmful_prompts: int, harmless_counts: torch.Tensor, harmless_prompts: int
) -> torch.Tensor:
    """The log-odds of use on harmful against harmless prompts, in nats, with half a prompt added to each count.

    log((h + ½) / (H − h + ½)) − log((b + ½) / (B − b + ½)), where h of H harmful and b of B harmless prompts use the
    expert (Haldane's and Anscombe's correction: finite for an expert that a side always or never uses).

    Args:
        harmful_counts: any shape, integers from 0 to `harmful_prompts`; the other side's likewise.

    Returns:
        Float64 of the same shape: the exact number's nearest. Equal shares of equal numbers give exactly 0.
    """
    counts = zip(harmful_counts.flatten().tolist(), harmless_counts.flatten().tolist(), strict=True)
    found = [_of_one(harmful, harmful_prompts, harmless, harmless_prompts) for harmful, harmless in counts]
    return torch.tensor(found, dtype=torch.float64).view(harmful_counts.shape)


def _of_one(harmful: int, harmful_prompts: int, harmless: int, harmless_prompts: int) -> float:
    """The logarithm of one ratio of integers: the halves doubled, and the two logarithms made one."""
    above = (2 * harmful + 1) * (2 * (harmless_prompts - harmless) + 1)
    below = (2 * (harmful_prompts - harmful) + 1) * (2 * harmless + 1)
    return float(_DIGITS.ln(_DIGITS.divide(Decimal(above), Decimal(below))))
