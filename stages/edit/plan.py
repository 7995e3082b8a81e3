"""The plan: every rule resolved against one checkpoint, tensor by tensor, with nothing skipped in silence."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from schemas.artifacts import ModelManifest, PlanRow, Projection
from schemas.layout import Layout, Norm, Reader, Variant, Writer, layouts, matcher
from schemas.params import Ablate, Rule, Target
from stages.base.stage import StageError
from stages.base.weights import Tensor

EMBEDDING: Target = "embedding"


@dataclass(frozen=True)
class Place:
    """One tensor of one layer, and what its layout says of it."""

    part: Writer | Reader
    tensor: str
    layer: int
    norms: tuple[str, ...]
    """Full names of the weights of the norms that the part goes through, in their order."""
    norm_bias: str | None = None
    """Full name of the bias of a reader's LayerNorm, where the checkpoint has it."""
    expert: int | None = None
    """Which expert it is of, where each has a tensor of its own."""
    is_bias: bool = False


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
    ablate: Ablate,
    manifest: ModelManifest,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    reasons: Sequence[str | None],
) -> list[Edit]:
    """Resolve the rules, the later one winning where two name the same tensor (of fused experts, the same expert).

    Args:
        config: the base model's config.json, its text part.
        tensors: every tensor of the checkpoint by name.
        reasons: for each measurement, why it has no direction; None where it has one.

    Returns:
        One edit a tensor, in the order of layers and names; those of scale 0 are left out.

    Raises:
        StageError: a rule names what the model does not have, or the checkpoint and its layout disagree.
    """
    layout = layouts()[manifest.model_type]
    by_layer = sort_by_layer(layout, manifest, tensors)
    resolved: dict[int, list[Place]] = {}
    planned: dict[tuple[str, int | None], Edit] = {}
    for number, rule in enumerate(ablate.rules):
        targets = ablate.targets_of(rule)
        chosen = layers_of(rule, number, manifest)
        for layer in chosen:
            if layer not in resolved:
                resolved[layer] = resolve_layer(layout, manifest, config, layer, by_layer[layer], tensors)
        places = [place for layer in chosen for place in resolved[layer]]
        edits = [
            edit
            for place in places
            if place.part.role in targets
            for edit in _edits(place, rule, number, config, layout, tensors)
        ]
        if EMBEDDING in targets:
            edits += _embedding(rule, number, ablate, config, layout, tensors)
        if not edits:
            there = sorted({place.part.role for place in places} | {EMBEDDING})
            raise StageError(
                f"params.yaml: ablate.rules.{number}: the layers it names have none of {', '.join(targets)}; "
                f"they have {', '.join(there)}"
            )
        for measurement in sorted({edit.measurement for edit in edits}):
            _check_measurement(measurement, number, manifest, reasons)
        for edit in edits:
            for expert in edit.experts or (None,):
                planned[edit.tensor, expert] = replace(edit, experts=None if expert is None else (expert,))
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


def _share(edit: Edit, tensor: Tensor) -> float:
    return 1.0 if edit.experts is None else len(edit.experts) / tensor.shape[0]


def spare_layers(layout: Layout, manifest: ModelManifest, tensors: Iterable[str]) -> list[str]:
    """Layers that a checkpoint holds beyond those in use, such as those for multi-token prediction; they are copied.

    Returns:
        The prefixes of their tensors, such as `model.layers.46.` or `mtp.`.
    """
    prefixes = [matcher(prefix) for prefix in layout.layers]
    numbered: dict[int, str] = {}
    others: set[str] = set()
    for name in tensors:
        found = next((match for prefix in prefixes if (match := prefix.match(name))), None)
        if found is not None and int(found["layer"]) >= manifest.layers:
            numbered[int(found["layer"])] = found[0]
        others |= {prefix for prefix in layout.spare if name.startswith(prefix)}
    return [numbered[number] for number in sorted(numbered)] + sorted(others)


def sort_by_layer(layout: Layout, manifest: ModelManifest, tensors: Iterable[str]) -> list[dict[str, str]]:
    """For each layer in use, its tensors' names: within the layer → full. Others (embeddings) are left."""
    prefixes = [matcher(prefix) for prefix in layout.layers]
    layers: list[dict[str, str]] = [{} for _ in range(manifest.layers)]
    for name in sorted(tensors):
        found = next((match for prefix in prefixes if (match := prefix.match(name))), None)
        if found is not None and int(found["layer"]) < manifest.layers:
            layers[int(found["layer"])][name[found.end() :]] = name
    return layers


def resolve_layer(
    layout: Layout,
    manifest: ModelManifest,
    config: Mapping[str, Any],
    layer: int,
    names: Mapping[str, str],
    tensors: Mapping[str, Tensor],
) -> list[Place]:
    """Every writer and reader of one layer, which must hold what its layout declares and nothing else.

    Raises:
        StageError: it names the tensors that are missing, unknown or of another shape.
    """
    where = f"layer {layer} of this {manifest.model_type} model"
    known = {*layout.others, layout.layer_scalar}
    places: list[Place] = []
    for variant in variants_of(layout, manifest, config, layer, names):
        known |= set(variant.others) | ({variant.router_bias.weight} if variant.router_bias is not None else set())
        parts: list[Writer | Reader] = [*variant.writers, *variant.readers]
        for part in parts:
            norms = part.norms if isinstance(part, Writer) else (part.norm,) if part.norm is not None else ()
            if unnamed := [norm.weight for norm in norms if norm.weight not in names]:
                raise StageError(f"{where} lacks {_listed(_full(unnamed, names))}; fetch the checkpoint again")
            for expert, rest in _expanded(part.weight, layout, config):
                bias = part.bias.replace("{expert}", str(expert)) if part.bias is not None else None
                known |= {rest, *([bias] if bias is not None else [])}
                if rest not in names:
                    continue
                place = Place(part, names[rest], layer, tuple(names[norm.weight] for norm in norms), expert=expert)
                norm_bias = part.norm.bias if isinstance(part, Reader) and part.norm is not None else None
                if norm_bias is not None and norm_bias in names:
                    place = replace(place, norm_bias=names[norm_bias])
                places.append(place)
                if bias is not None and bias in names and isinstance(part, Writer):
                    places.append(replace(place, tensor=names[bias], is_bias=True))
    known |= {norm.bias for norm in _norms(layout) if norm.bias is not None} | {norm.weight for norm in _norms(layout)}
    if unknown := sorted(names.keys() - known):
        raise StageError(
            f"{where} has tensors that its layout does not name: {_listed([names[rest] for rest in unknown])}; "
            "add them to schemas/architectures/"
        )
    for place in places:
        _check_shape(place, manifest, layout, config, tensors)
    return places


def variants_of(
    layout: Layout, manifest: ModelManifest, config: Mapping[str, Any], layer: int, names: Mapping[str, str]
) -> list[Variant]:
    """The form that each sublayer of one layer takes.

    Args:
        names: the layer's tensors, within the layer → full.

    Raises:
        StageError: it holds none of them whole.
    """
    where = f"layer {layer} of this {manifest.model_type} model"
    return [
        _variant_of(variants, layout, config, names, f"{where}: {sublayer}")
        for sublayer, variants in layout.sublayers.items()
    ]


def _norms(layout: Layout) -> list[Norm]:
    variants = [variant for variants in layout.sublayers.values() for variant in variants]
    behind = [norm for variant in variants for writer in variant.writers for norm in writer.norms]
    return behind + [reader.norm for variant in variants for reader in variant.readers if reader.norm is not None]


def _variant_of(
    variants: Sequence[Variant], layout: Layout, config: Mapping[str, Any], names: Mapping[str, str], where: str
) -> Variant:
    """The largest variant that the layer holds whole."""
    required = [
        [
            rest
            for part in (*variant.writers, *(reader for reader in variant.readers if not reader.optional))
            for _, rest in _expanded(part.weight, layout, config, names)
        ]
        for variant in variants
    ]
    whole = [place for place, rests in enumerate(required) if all(rest in names for rest in rests)]
    if whole:
        return variants[max(whole, key=lambda place: len(required[place]))]
    nearest = max(required, key=lambda rests: sum(rest in names for rest in rests))
    missing = [rest for rest in nearest if rest not in names]
    raise StageError(f"{where} lacks {_listed(_full(missing, names))}; fetch the checkpoint again")


def _expanded(
    weight: str, layout: Layout, config: Mapping[str, Any], names: Mapping[str, str] | None = None
) -> list[tuple[int | None, str]]:
    """A name within the layer, once for each expert; of a layer without the first one, that one alone."""
    if "{expert}" not in weight:
        return [(None, weight)]
    if names is not None and weight.replace("{expert}", "0") not in names:
        return [(0, weight.replace("{expert}", "0"))]
    return [(expert, weight.replace("{expert}", str(expert))) for expert in range(expert_count(layout, config))]


def expert_count(layout: Layout, config: Mapping[str, Any]) -> int:
    """How many routed experts a layer has.

    Raises:
        StageError: config.json does not say.
    """
    count = next((config[key] for key in layout.expert_count if key in config), None)
    if not isinstance(count, int):
        raise StageError(f"config.json does not say how many experts there are ({' or '.join(layout.expert_count)})")
    return count


def _edits(
    place: Place,
    rule: Rule,
    number: int,
    config: Mapping[str, Any],
    layout: Layout,
    tensors: Mapping[str, Tensor],
) -> list[Edit]:
    fused = place.part.axes.startswith("expert")
    experts: tuple[int, ...] | None = None
    if rule.experts is not None:
        if place.part.role not in ("routed_experts", "expert_inputs"):
            raise StageError(
                f"params.yaml: ablate.rules.{number}.experts: {place.part.role} has no experts; "
                "give such a rule targets routed_experts or expert_inputs alone"
            )
        if not fused and place.expert is None:
            return []  # a shared expert's input
        count = expert_count(layout, config)
        if (last := max(rule.experts)) >= count:
            raise StageError(
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
    config: Mapping[str, Any],
    layout: Layout,
    tensors: Mapping[str, Tensor],
) -> list[Edit]:
    found = next((name for name in layout.embeddings if name in tensors), None)
    if found is None:
        raise StageError(f"the checkpoint has no {layout.embeddings[0]}; fetch it again")
    if rule.measurement == "same":
        raise StageError(
            f"params.yaml: ablate.rules.{number}.measurement: the embedding has no layer for `same` to mean; "
            "give the embedding a rule of its own that names a measurement"
        )
    head = next((name for name in layout.heads if name in tensors), None)
    tied = head is None or config.get("tie_word_embeddings") is True
    if tied and not ablate.allow_tied:
        raise StageError(
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
        for name in ([found, head] if tied and head is not None else [found])
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


def _check_shape(
    place: Place, manifest: ModelManifest, layout: Layout, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    shape = tensors[place.tensor].shape
    fused = place.part.axes.startswith("expert")
    dimensions = (1 if place.is_bias else 2) + fused
    out_in = place.part.axes in ("out in", "expert out in")
    stream = -1 if place.is_bias or isinstance(place.part, Writer) != out_in else -2
    experts_fit = not fused or (bool(shape) and shape[0] == expert_count(layout, config))
    if len(shape) != dimensions or shape[stream] != manifest.hidden_size or not experts_fit:
        does = "write to" if isinstance(place.part, Writer) else "read"
        raise StageError(
            f"{place.tensor} has shape {list(shape)}, which cannot {does} a stream of {manifest.hidden_size}"
        )


def layers_of(rule: Rule, number: int, manifest: ModelManifest) -> Sequence[int]:
    """The layers that a rule names.

    Raises:
        StageError: the model does not have them.
    """
    if rule.layers == "all":
        return range(manifest.layers)
    if (last := max(rule.layers)) >= manifest.layers:
        raise StageError(
            f"params.yaml: ablate.rules.{number}.layers: there is no layer {last}; "
            f"this {manifest.model_type} model has layers 0-{manifest.layers - 1}"
        )
    return rule.layers


def _check_measurement(measurement: float, number: int, manifest: ModelManifest, reasons: Sequence[str | None]) -> None:
    key = f"params.yaml: ablate.rules.{number}.measurement"
    if measurement > len(reasons) - 1:
        raise StageError(
            f"{key}: there is no measurement {measurement:g}; "
            f"this {manifest.model_type} model has measurements 0-{manifest.layers}"
        )
    for neighbour in {int(measurement), -int(-measurement // 1)}:
        if reason := reasons[neighbour]:
            raise StageError(f"{key}: measurement {neighbour} has no direction: {reason}; name another")


def _full(rests: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """Names within a layer with the prefix that the layer's tensors have."""
    prefix = next((name.removesuffix(rest) for rest, name in names.items()), "")
    return [prefix + rest for rest in rests]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
