"""Moving what routers choose: what is added to each router's bias, which is no projection and has no direction."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from excise.checkpoint.weights import Tensor
from excise.edit.directions import CannotEdit
from excise.edit.layout import expert_count, sort_by_layer, variants_of
from excise.edit.plan import layers_of
from excise.plumbing.errors import StageError
from schemas.edit import BiasShift, PlanRow
from schemas.layout import ModelLayout, RouterBias
from schemas.params.ablate import Ablate

KEY = "params.yaml: ablate.router_bias"


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


def make_shifts(
    ablate: Ablate,
    layout: ModelLayout,
    tensors: Mapping[str, Tensor],
    log_odds: Mapping[int, torch.Tensor],
) -> list[Shift]:
    """Minus `strength` times the log-odds of each expert's use, for every router of the layers that the rules name.

    Args:
        tensors: every tensor of the checkpoint by name.
        log_odds: by layer with routed experts, ``[experts]`` float64.

    Returns:
        One a layer, in their order; none where `router_bias` is null or its strength 0.

    Raises:
        StageError: these layers have no routed experts, or a router without a bias.
    """
    if ablate.router_bias is None:
        return []
    by_layer = sort_by_layer(layout, tensors)
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
            tensor = tensors[names[bias.weight]]
            if tensor.shape != (experts := expert_count(layout),):
                raise StageError(
                    f"{names[bias.weight]} has shape {list(tensor.shape)}, but there are {experts} experts"
                )
            # 0 minus, and not a change of sign: what is not moved is moved by 0.0.
            added = 0 - ablate.router_bias.strength * log_odds[layer]
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
