"""The plan: every rule resolved against one model, tensor by tensor. Nothing is skipped silently."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch

from excise.checkpoint.base_model import BaseModel
from excise.edit.planning.layout import Place, embeddings_of, norms_of, resolve_layer, sort_by_layer
from excise.edit.planning.projectors import (
    Directions,
    NoProjector,
    Projector,
    TooOblique,
    reader_projector,
    writer_projector,
)
from excise.plumbing.errors import StageError
from schemas.basis.text import ranges
from schemas.edit import Projection
from schemas.model import Embedding, ModelLayout, Norm, Reader
from schemas.params.ablate import Ablate, Rule, Target

EMBEDDING: Target = "embedding"


class CannotEdit(StageError):
    """An edit that this model does not allow, although its files are valid; trials leave it out and go on."""


@dataclass(frozen=True)
class Edit:
    """The edit of one tensor."""

    tensor: str
    file: str
    place: Place | None  # None for the embeddings
    measurement: float
    scale: float
    projector: Projector
    through: torch.Tensor | None = None  # [hidden] float64: direction after the norms that it ignores, None without
    keep_column_norms: bool = False  # whether what each hidden unit writes gets its old norm back
    experts: tuple[int, ...] | None = None  # which matrices along the first axis; None for all
    embedding: Embedding | None = None  # None for tensors of layers

    @property
    def role(self) -> Target:
        return EMBEDDING if self.place is None else self.place.part.role

    @property
    def layer(self) -> int | None:
        return None if self.place is None else self.place.layer

    @property
    def stream_axis(self) -> int:
        """Which axis of each matrix is the residual stream's: 0 rows, 1 columns."""
        return 1 if self.place is None else self.place.stream_axis

    @property
    def of_experts(self) -> tuple[int, ...] | None:
        """Which of the layer's routed experts it edits; None for all, and for tensors without experts."""
        single = None if self.place is None or self.place.expert is None else (self.place.expert,)
        return self.experts if self.experts is not None else single

    @property
    def norms(self) -> tuple[str, ...]:
        """The weights of the norms between the tensor and the stream, in order."""
        if self.embedding is not None:
            return tuple(norm.weight for norm in self.embedding.norms if norm.weight is not None)
        return () if self.place is None else self.place.norms

    def record(self, left: float | None) -> Projection:
        """The edit in edit.json, with the share that is `left` of what the tensor writes along the direction."""
        fields = {name: getattr(self, name) for name in Projection.model_fields if name != "left"}
        return Projection.model_validate({**fields, "left": left}, strict=False)


class _Choice(NamedTuple):
    """What a rule chooses for one tensor, or for one of its experts."""

    tensor: str
    place: Place | None
    measurement: float
    scale: float
    embedding: Embedding | None = None


_Applied = tuple[Projector, torch.Tensor | None]  # `projector` and `through` of `Edit`
_Matrix = tuple[str, int | None]  # a tensor, and an expert if it holds all experts of a layer


def make_plan(ablate: Ablate, base: BaseModel, directions: Directions) -> list[Edit]:
    """Resolve the rules to one edit for each tensor, in the order of layers and names. If two rules name the same
    tensor (of fused experts, the same expert), the later one wins; scale 0 is no edit. Raises `CannotEdit`: a rule
    does nothing, or asks for what the model does not have or allow. Raises `StageError`: a measurement has no
    direction, or the checkpoint and its layout disagree."""
    by_layer = sort_by_layer(base.layout, base.tensors)
    places_in = cache(lambda layer: resolve_layer(base.layout, layer, by_layer[layer], base.tensors))
    chosen: dict[_Matrix, _Choice] = {}
    named_by: dict[_Matrix, list[int]] = {}
    for number, rule in enumerate(ablate.rules):
        where = f"params.yaml: ablate.rules.{number}"
        places = [place for layer in layers_of(rule, where, base.layout) for place in places_in(layer)]
        for matrix, choice in _choices(rule, where, ablate, places, base):
            _check_measurement(choice.measurement, f"{where}.measurement", base.layout, directions)
            chosen[matrix] = choice
            named_by.setdefault(matrix, []).append(number)
    _refuse_idle_rules(named_by.values())

    # Experts of one tensor that are edited in the same way make one edit.
    experts: dict[_Choice, list[int]] = {}
    for (_, expert), choice in chosen.items():
        if choice.scale != 0:
            experts.setdefault(choice, []).extend([] if expert is None else [expert])
    applied: dict[tuple[object, ...], _Applied | TooOblique] = {}
    edits, too_oblique = [], []
    keeps_norms = ablate.method == "preserve_column_norms"
    for choice, numbers in experts.items():
        place = choice.place
        # Computed once for all tensors with the same direction and norms.
        norms = () if place is None else (place.layer, place.writes, place.norms, place.norm_bias)
        if (key := (choice.measurement, *norms, choice.embedding and choice.embedding.norms)) not in applied:
            applied[key] = _applied(choice, ablate, base, directions)
        if isinstance(result := applied[key], TooOblique):
            too_oblique.append((choice, result))
            continue
        edits.append(
            Edit(
                **choice._asdict(),
                file=base.tensors[choice.tensor].file,
                projector=result[0],
                through=result[1],
                # Hidden units write through neither readers nor biases.
                keep_column_norms=keeps_norms and place is not None and place.writes and not place.is_bias,
                experts=tuple(sorted(numbers)) or None,
            )
        )
    _refuse_oblique(too_oblique, len(experts))
    return sorted(edits, key=lambda edit: (-1 if edit.layer is None else edit.layer, edit.role, edit.tensor))


def layers_of(rule: Rule, where: str, layout: ModelLayout) -> Sequence[int]:
    """The layers that a rule names. `where` is for errors. Raises `CannotEdit`: the model lacks one of them."""
    if rule.layers == "all":
        return range(layout.layers)
    if (last := max(rule.layers)) >= layout.layers:
        raise CannotEdit(f"{where}.layers: there is no layer {last}; this model has layers 0-{layout.layers - 1}")
    return rule.layers


def _choices(
    rule: Rule, where: str, ablate: Ablate, places: Sequence[Place], base: BaseModel
) -> list[tuple[_Matrix, _Choice]]:
    targets = ablate.targets_of(rule)
    choices: list[tuple[_Matrix, _Choice]] = []
    for place in places:
        if place.part.role in targets:
            measurement = place.layer if rule.measurement == "same" else rule.measurement
            choice = _Choice(place.tensor, place, measurement, rule.scale)
            choices += [((place.tensor, expert), choice) for expert in _experts(place, rule, where, base)]
    if EMBEDDING in targets:
        choices += [((choice.tensor, None), choice) for choice in _embedding(rule, where, ablate, base)]
    reads = any(choice.place is not None and not choice.place.writes for _, choice in choices)
    if reads and base.layout.family.reads_elsewhere:
        raise CannotEdit(
            f"{where}.targets: models of the type {base.layout.model_type} also read the stream in ways that no layout "
            "can say, so an edit of readers would be in part; name writers only"
        )
    if not choices:
        roles = sorted({place.part.role for place in places} | {EMBEDDING})
        raise CannotEdit(f"{where}: its layers have none of {', '.join(targets)}; they have {', '.join(roles)}")
    return choices


def _experts(place: Place, rule: Rule, where: str, base: BaseModel) -> Sequence[int | None]:
    """The experts of a tensor that a rule names; None for a tensor of a single matrix."""
    if rule.experts is None:
        return range(base.tensors[place.tensor].shape[0]) if place.is_fused else [None]
    if place.part.role not in ("routed_experts", "expert_inputs"):
        raise CannotEdit(
            f"{where}.experts: {place.part.role} has no experts; in this rule, use only routed_experts or expert_inputs"
        )
    if not place.is_fused and place.expert is None:
        return []  # a shared expert's input
    count = base.layout.experts or 0
    if (last := max(rule.experts)) >= count:
        raise CannotEdit(f"{where}.experts: there is no expert {last}; there are 0-{count - 1}")
    if place.is_fused:
        return rule.experts
    return [None] if place.expert in rule.experts else []


def _embedding(rule: Rule, where: str, ablate: Ablate, base: BaseModel) -> list[_Choice]:
    if rule.measurement == "same":
        raise CannotEdit(
            f"{where}.measurement: `same` means the layer, and the embedding has none; "
            "give the embedding a rule of its own that names a measurement"
        )
    if base.layout.tied and not ablate.allow_tied:
        raise CannotEdit(
            f"{where}.targets: embedding: this model's output head is its embedding, so both would be edited; "
            "write allow_tied: true under ablate to allow that"
        )
    embeddings = embeddings_of(base.layout, base.tensors)
    return [_Choice(each.weight, None, rule.measurement, rule.scale, each) for each in embeddings]


def _check_measurement(measurement: float, where: str, layout: ModelLayout, directions: Directions) -> None:
    if measurement > layout.layers:
        raise CannotEdit(f"{where}: no measurement {measurement:g}; this model has measurements 0-{layout.layers}")
    for neighbor in {math.floor(measurement), math.ceil(measurement)}:
        if reason := directions.reasons[neighbor]:
            raise StageError(f"{where}: measurement {neighbor} has no direction: {reason}; name another")


def _refuse_idle_rules(named: Collection[Sequence[int]]) -> None:
    """`named` has, for each matrix, the rules that name it in their order; the last one edits it."""
    effective = {rules[-1] for rules in named}
    for idle in sorted({number for rules in named for number in rules} - effective):
        later = sorted({rules[-1] for rules in named if idle in rules})
        winners = " and ".join(f"ablate.rules.{number}" for number in later)
        raise CannotEdit(
            f"params.yaml: ablate.rules.{idle} does nothing: every tensor that it names is named again by "
            f"{winners}, and later rules win; remove it, or put it last"
        )


def _refuse_oblique(refused: Sequence[tuple[_Choice, TooOblique]], planned: int) -> None:
    if not refused:
        return
    example, worst = max(refused, key=lambda refusal: refusal[1].times)
    layers = ranges(sorted({choice.place.layer for choice, _ in refused if choice.place is not None}))
    if all(choice.place is not None and choice.place.writes for choice, _ in refused):
        key, remedy = "ablate.through_norm", "write through_norm: ignore, or leave these layers out"
    else:
        key, remedy = "ablate.targets", "name no readers of these layers"
    raise CannotEdit(
        f"params.yaml: {key}: {len(refused)} of {planned} tensors, in layers {layers}, are beside a norm with weights "
        f"so small that an oblique edit would multiply up to {worst.times:.3g} times ({worst.most:g} at most), such "
        f"as {example.tensor}; {remedy}"
    )


def _applied(choice: _Choice, ablate: Ablate, base: BaseModel, directions: Directions) -> _Applied | TooOblique:
    """What an edit applies, or that it is too oblique, which is reported for all tensors together."""
    place = choice.place
    try:
        basis = directions.at(choice.measurement, 0 if place is None else place.layer, ablate.orthogonalize)[:, None]
        norms = norms_of(place.part) if place is not None else choice.embedding.norms if choice.embedding else ()
        gains = _gains(norms, () if place is None else place.norms, base)
        if place is None or not isinstance(place.part, Reader):
            through = None if gains is None or ablate.through_norm != "ignore" else gains * basis[:, 0]
            centered = any(norm.kind == "layer" for norm in norms)
            return writer_projector(basis, gains, ablate.through_norm, centered), through
        bias = None if place.norm_bias is None else base.vector(place.norm_bias).double()
        norm = place.part.norm
        return reader_projector(basis, gains, bias, centered=norm is not None and norm.kind == "layer"), None
    except TooOblique as error:
        return error
    except NoProjector as reason:
        raise CannotEdit(f"{choice.tensor} cannot be edited: {reason}") from None


def _gains(norms: Sequence[Norm], names: Sequence[str], base: BaseModel) -> torch.Tensor | None:
    """The gains of a chain of norms, ``[hidden]`` float64; None for no norm. `names` are the full names of those within
    a layer that have weights."""
    if not norms:
        return None
    gains = torch.ones(base.layout.hidden_size, dtype=torch.float64)
    weighted = [norm for norm in norms if norm.weight is not None]
    for norm, name in zip(weighted, names or [str(norm.weight) for norm in weighted], strict=True):
        gains = gains * (base.vector(name).double() + norm.offset)
    if not bool(torch.isfinite(gains).all()):
        raise StageError(f"{' and '.join(names)} holds NaN or infinity; fetch the checkpoint again")
    return gains
