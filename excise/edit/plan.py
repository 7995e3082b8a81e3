"""The plan: every rule resolved against one checkpoint, tensor by tensor, with nothing skipped in silence."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from excise.checkpoint.weights import Tensor
from excise.edit.directions import CannotEdit
from excise.edit.layout import Place, embedding_and_head, resolve_layer, sort_by_layer
from excise.plumbing.errors import StageError
from schemas.edit import PlanRow, Projection
from schemas.layout import ModelLayout, Writer
from schemas.params.ablate import Ablate, Rule, Target

EMBEDDING: Target = "embedding"


@dataclass(frozen=True)
class Edit:
    """How one tensor is edited."""

    tensor: str
    file: str
    role: Target
    layer: int | None
    """None for the embeddings."""
    place: Place | None
    """None for the embeddings."""
    measurement: float
    scale: float
    stream_axis: int
    """Which of the last two axes is the residual stream's."""
    experts: tuple[int, ...] | None = None
    """Which matrices along the first axis; None for all."""

    @property
    def has_columns(self) -> bool:
        """Whether hidden units write through it, whose norms can be kept: not so readers, biases and embeddings."""
        return self.place is not None and isinstance(self.place.part, Writer) and not self.place.is_bias

    def record(self) -> Projection:
        """As it stands in edit.json."""
        return Projection(
            tensor=self.tensor,
            file=self.file,
            role=self.role,
            layer=self.layer,
            measurement=self.measurement,
            scale=self.scale,
            experts=None if self.experts is None else list(self.experts),
            norms=list(self.place.norms) if self.place is not None else [],
        )


def make_plan(
    ablate: Ablate, layout: ModelLayout, tensors: Mapping[str, Tensor], reasons: Sequence[str | None]
) -> list[Edit]:
    """Resolve the rules, the later one winning where two name the same tensor (of fused experts, the same expert).

    Args:
        tensors: every tensor of the checkpoint by name.
        reasons: for each measurement, why it has no direction; None where it has one.

    Returns:
        One edit a tensor, in the order of layers and names; those of scale 0 are left out.

    Raises:
        StageError: a rule names what the model does not have, or does nothing; or the checkpoint and its layout
            disagree.
    """
    by_layer = sort_by_layer(layout, tensors)
    resolved: dict[int, list[Place]] = {}
    planned: dict[tuple[str, int | None], Edit] = {}
    planned_by: dict[tuple[str, int | None], list[int]] = {}
    for number, rule in enumerate(ablate.rules):
        targets = ablate.targets_of(rule)
        chosen = layers_of(rule, number, layout)
        for layer in chosen:
            if layer not in resolved:
                resolved[layer] = resolve_layer(layout, layer, by_layer[layer], tensors)
        places = [place for layer in chosen for place in resolved[layer]]
        edits = [
            edit
            for place in places
            if place.part.role in targets
            for edit in _edits(place, rule, number, layout, tensors)
        ]
        if EMBEDDING in targets:
            edits += _embedding(rule, number, ablate, layout, tensors)
        if not edits:
            there = sorted({place.part.role for place in places} | {EMBEDDING})
            raise CannotEdit(
                f"params.yaml: ablate.rules.{number}: the layers it names have none of {', '.join(targets)}; "
                f"they have {', '.join(there)}"
            )
        for measurement in sorted({edit.measurement for edit in edits}):
            _check_measurement(measurement, number, layout, reasons)
        for edit in edits:
            for expert in edit.experts or (None,):
                planned[edit.tensor, expert] = replace(edit, experts=None if expert is None else (expert,))
                planned_by.setdefault((edit.tensor, expert), []).append(number)
    _refuse_idle_rules(planned_by.values())
    return _merged(edit for edit in planned.values() if edit.scale != 0)


def summary(plan: Sequence[Edit], tensors: Mapping[str, Tensor]) -> list[PlanRow]:
    """The plan by role: how many tensors, in which layers, and how much of them."""
    rows = []
    for role in dict.fromkeys(edit.role for edit in plan):
        edits = [edit for edit in plan if edit.role == role]
        parts = [(tensors[edit.tensor], _share(edit, tensors[edit.tensor])) for edit in edits]
        rows.append(
            PlanRow(
                role=role,
                tensors=len({edit.tensor for edit in edits}),
                layers=sorted({edit.layer for edit in edits if edit.layer is not None}),
                parameters=sum(round(share * math.prod(tensor.shape)) for tensor, share in parts),
                bytes=sum(round(share * (tensor.stop - tensor.start)) for tensor, share in parts),
            )
        )
    return rows


def _refuse_idle_rules(numbers: Iterable[Sequence[int]]) -> None:
    """Raises `StageError` for a rule all of whose tensors later rules take over.

    Args:
        numbers: for each tensor, the rules that name it, in their order: the last one edits it.
    """
    named = list(numbers)
    at_work = {rules[-1] for rules in named}
    for idle in sorted({number for rules in named for number in rules} - at_work):
        later = sorted({rules[-1] for rules in named if idle in rules})
        named_again = " and ".join(f"ablate.rules.{number}" for number in later)
        raise CannotEdit(
            f"params.yaml: ablate.rules.{idle} does nothing: every tensor that it names is named again by "
            f"{named_again}, and later rules win; remove it, or put it last"
        )


def _share(edit: Edit, tensor: Tensor) -> float:
    return 1.0 if edit.experts is None else len(edit.experts) / tensor.shape[0]


def _edits(
    place: Place,
    rule: Rule,
    number: int,
    layout: ModelLayout,
    tensors: Mapping[str, Tensor],
) -> list[Edit]:
    fused = place.part.axes.startswith("expert")
    experts: tuple[int, ...] | None = None
    if rule.experts is not None:
        if place.part.role not in ("routed_experts", "expert_inputs"):
            raise CannotEdit(
                f"params.yaml: ablate.rules.{number}.experts: {place.part.role} has no experts; "
                "give such a rule targets routed_experts or expert_inputs alone"
            )
        if not fused and place.expert is None:
            return []  # a shared expert's input
        count = layout.experts or 0
        if (last := max(rule.experts)) >= count:
            raise CannotEdit(
                f"params.yaml: ablate.rules.{number}.experts: there is no expert {last}; there are 0-{count - 1}"
            )
        if not fused and place.expert not in rule.experts:
            return []
    if fused:
        experts = rule.experts if rule.experts is not None else tuple(range(tensors[place.tensor].shape[0]))
    out_in = place.part.axes in ("out in", "expert out in")
    return [
        Edit(
            tensor=place.tensor,
            file=tensors[place.tensor].file,
            role=place.part.role,
            layer=place.layer,
            place=place,
            measurement=place.layer if rule.measurement == "same" else rule.measurement,
            scale=rule.scale,
            stream_axis=1 if place.is_bias else 0 if isinstance(place.part, Writer) == out_in else 1,
            experts=experts,
        )
    ]


def _embedding(
    rule: Rule,
    number: int,
    ablate: Ablate,
    layout: ModelLayout,
    tensors: Mapping[str, Tensor],
) -> list[Edit]:
    found, head = embedding_and_head(layout, tensors)
    if rule.measurement == "same":
        raise CannotEdit(
            f"params.yaml: ablate.rules.{number}.measurement: the embedding has no layer for `same` to mean; "
            "give the embedding a rule of its own that names a measurement"
        )
    if layout.tied and not ablate.allow_tied:
        raise CannotEdit(
            f"params.yaml: ablate.rules.{number}.targets: embedding: this model's output head is its embedding, so "
            "both would be edited; write allow_tied: true under ablate if that is meant"
        )
    return [
        Edit(
            tensor=name,
            file=tensors[name].file,
            role=EMBEDDING,
            layer=None,
            place=None,
            measurement=rule.measurement,
            scale=rule.scale,
            stream_axis=1,
        )
        # A tied model may hold the one tensor twice.
        for name in ([found, head] if layout.tied and head is not None else [found])
    ]


def _merged(edits: Iterable[Edit]) -> list[Edit]:
    """The experts of one tensor that are edited alike, as one edit."""
    groups: dict[tuple[Any, ...], list[Edit]] = {}
    for edit in edits:
        groups.setdefault((edit.tensor, edit.measurement, edit.scale), []).append(edit)
    merged = [
        replace(
            group[0],
            experts=tuple(sorted(expert for edit in group for expert in edit.experts or ()))
            if group[0].experts is not None
            else None,
        )
        for group in groups.values()
    ]
    return sorted(merged, key=lambda edit: (-1 if edit.layer is None else edit.layer, edit.role, edit.tensor))


def layers_of(rule: Rule, number: int, layout: ModelLayout) -> Sequence[int]:
    """The layers that a rule names.

    Raises:
        StageError: the model does not have them.
    """
    if rule.layers == "all":
        return range(layout.layers)
    if (last := max(rule.layers)) >= layout.layers:
        raise CannotEdit(
            f"params.yaml: ablate.rules.{number}.layers: there is no layer {last}; "
            f"this {layout.model_type} model has layers 0-{layout.layers - 1}"
        )
    return rule.layers


def _check_measurement(measurement: float, number: int, layout: ModelLayout, reasons: Sequence[str | None]) -> None:
    key = f"params.yaml: ablate.rules.{number}.measurement"
    if measurement > len(reasons) - 1:
        raise CannotEdit(
            f"{key}: there is no measurement {measurement:g}; "
            f"this {layout.model_type} model has measurements 0-{layout.layers}"
        )
    for neighbour in {int(measurement), -int(-measurement // 1)}:
        if reason := reasons[neighbour]:
            raise StageError(f"{key}: measurement {neighbour} has no direction: {reason}; name another")
