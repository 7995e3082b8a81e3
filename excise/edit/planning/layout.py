"""The tensors of one checkpoint, resolved against its layout. No tensor is skipped silently."""

import functools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from excise.checkpoint.base_model import float_type
from excise.checkpoint.weights import Tensor
from excise.plumbing.errors import StageError
from schemas.basis.text import listed
from schemas.model import Embedding, Layout, ModelLayout, Norm, Reader, Variant, Writer, matcher

_REMEDY = "save the complete checkpoint, or name another copy of it"
_matcher = functools.cache(matcher)


@dataclass(frozen=True)
class Place:
    """One tensor of a layer, with the part of the layout that describes it."""

    part: Writer | Reader
    tensor: str
    layer: int
    norms: tuple[str, ...]  # full names of the weights of the norms between it and the stream, in order
    norm_bias: str | None = None  # full name of the bias of a reader's LayerNorm, if the checkpoint has it
    expert: int | None = None  # if each expert has a tensor of its own
    is_bias: bool = False

    @property
    def is_alone(self) -> bool:
        """Whether it is a bias of no weight, which the layout names as a writer of its own."""
        return self.part.axes == "out"

    @property
    def writes(self) -> bool:
        return isinstance(self.part, Writer)

    @property
    def is_fused(self) -> bool:
        """Whether it holds all experts of the layer, along its first axis."""
        return self.part.axes.startswith("expert")

    @property
    def stream_axis(self) -> int:
        """Which axis of each matrix is the residual stream's: 0 rows, 1 columns or a bias."""
        return 1 if self.is_bias or self.writes != self.part.axes.endswith("out in") else 0


def spare_layers(layout: ModelLayout, tensors: Collection[str]) -> list[str]:
    """Prefixes, such as `model.layers.46.` or `mtp.`, of layers in a checkpoint that the model does not use."""
    matches = [match for name in tensors if (match := layer_match(layout.family, name))]
    numbered = {number: match[0] for match in matches if (number := int(match["layer"])) >= layout.layers}
    others = {prefix for prefix in layout.family.spare for name in tensors if name.startswith(prefix)}
    return [numbered[number] for number in sorted(numbered)] + sorted(others)


def layer_match(family: Layout, name: str) -> re.Match[str] | None:
    """The prefix of a layer's tensor, with the layer's number as its group; None for other tensors."""
    return next((match for prefix in family.layers if (match := _matcher(prefix).match(name))), None)


def as_named(family: Layout, tensors: Iterable[str]) -> Layout:
    """The family's layout with the checkpoint's names of experts, which may be one tensor each, or as in memory."""
    in_memory = family.in_memory()
    stored, fused = (
        {part.weight for part in _every_part(form) if part.role == "routed_experts"} for form in (family, in_memory)
    )
    suffixes = {name[match.end() :] for name in tensors if (match := layer_match(family, name))}
    return in_memory if (fused - stored) & suffixes else family


def _every_part(family: Layout) -> list[Writer | Reader]:
    return [part for variants in family.sublayers.values() for variant in variants for part in _parts(variant)]


def check_layout(layout: ModelLayout, tensors: Mapping[str, Tensor]) -> None:
    """Resolve every layer in use. Raises `StageError`: the layout disagrees, or a tensor is not of a float type."""
    for embedding in embeddings_of(layout, tensors):
        float_type(embedding.weight, tensors[embedding.weight])
    for layer, names in enumerate(sort_by_layer(layout, tensors)):
        for place in resolve_layer(layout, layer, names, tensors):
            float_type(place.tensor, tensors[place.tensor])


def embedding_and_head(layout: ModelLayout, tensors: Collection[str]) -> tuple[str, str | None]:
    """The names of the token embeddings and of the output head, None if they are one tensor. Raises `StageError`."""
    family = layout.family
    head = next((name for name in family.heads if name in tensors), None)
    embedding = next((name for name in family.embeddings if name in tensors), None)
    if embedding is None and layout.tied:
        embedding, head = head, None
    if embedding is None or (head is None and not layout.tied):
        missing = family.embeddings[0] if embedding is None else family.heads[0]
        raise StageError(f"this {layout.model_type} checkpoint has no {missing} under any known name; {_REMEDY}")
    return embedding, head


def embeddings_of(layout: ModelLayout, tensors: Collection[str]) -> list[Embedding]:
    """What is added to the stream before the first layer, the token embeddings first, twice if a tied model stores them
    twice. Raises `StageError`: one is missing."""
    name, head = embedding_and_head(layout, tensors)
    names = [name, head] if layout.tied and head is not None else [name]
    norms = layout.family.embedding_norms
    found = [*(Embedding(weight=each, norms=norms) for each in names), *layout.family.other_embeddings]
    needed = [*(each.weight for each in found), *(norm.weight for each in found for norm in each.norms)]
    if missing := [each for each in needed if each is not None and each not in tensors]:
        raise StageError(f"this {layout.model_type} checkpoint lacks {listed(missing)}; {_REMEDY}")
    return found


def sort_by_layer(layout: ModelLayout, tensors: Iterable[str]) -> list[dict[str, str]]:
    """For each layer in use, full names of tensors by names within the layer. Raises `StageError`: one has two."""
    layers: list[dict[str, str]] = [{} for _ in range(layout.layers)]
    for name in sorted(tensors):
        match = layer_match(layout.family, name)
        if match is not None and (layer := int(match["layer"])) < layout.layers:
            twin = layers[layer].setdefault(name[match.end() :], name)
            if twin != name:
                raise StageError(f"{twin} and {name} are two names of one tensor; keep one set of names")
    return layers


def resolve_layer(
    layout: ModelLayout, layer: int, names: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> list[Place]:
    """Every writer and reader of one layer. Raises `StageError`: a tensor is missing, unknown or of another shape."""
    where, family = _where(layout, layer), layout.family
    known = {name for other in family.others for _, name in _expanded(other, layout)} | {family.layer_scalar}
    known |= {name for part in _every_part(family) for norm in norms_of(part) for name in (norm.weight, norm.bias)}
    places: list[Place] = []
    for variant in variants_of(layout, layer, names):
        known |= {*variant.others, variant.router_bias.weight if variant.router_bias else None}
        for part in _parts(variant):
            norms = norms_of(part)
            norm_weights = [norm.weight for norm in norms if norm.weight is not None]
            if missing := [weight for weight in norm_weights if weight not in names]:
                raise _lacking(where, missing, names)
            weights = tuple(names[weight] for weight in norm_weights)
            norm_bias = next((names[norm.bias] for norm in norms if norm.bias is not None and norm.bias in names), None)
            for expert, weight in _expanded(part.weight, layout):
                bias = part.bias and part.bias.replace("{expert}", str(expert))
                known |= {weight, bias}
                if weight in names:
                    is_bias = part.axes == "out"
                    place = Place(part, names[weight], layer, weights, norm_bias, expert, is_bias)
                    places.append(place)
                    if bias is not None and bias in names and place.writes:
                        places.append(replace(place, tensor=names[bias], is_bias=True))
    if unknown := sorted(names.keys() - known):
        raise StageError(
            f"{where} has tensors that its layout does not name: {listed([names[suffix] for suffix in unknown])}; "
            "docs/architectures.md says how to add them to the layout"
        )
    for place in places:
        _check_shape(place, layout, tensors[place.tensor].shape)
    return places


def variants_of(layout: ModelLayout, layer: int, names: Mapping[str, str]) -> list[Variant]:
    """The largest variant of each sublayer of which `names` hold all tensors. Raises `StageError`: there is none."""
    chosen = []
    for sublayer, variants in layout.family.sublayers.items():
        required = [
            [
                weight
                for part in _parts(variant)
                if isinstance(part, Writer) or not part.optional
                for _, weight in _expanded(part.weight, layout, names)
            ]
            for variant in variants
        ]
        complete = [number for number, weights in enumerate(required) if names.keys() >= {*weights}]
        if not complete:
            nearest = max(required, key=lambda weights: sum(weight in names for weight in weights))
            missing = [weight for weight in nearest if weight not in names]
            raise _lacking(f"{_where(layout, layer)}: {sublayer}", missing, names)
        chosen.append(variants[max(complete, key=lambda number: len(required[number]))])
    return chosen


def _where(layout: ModelLayout, layer: int) -> str:
    return f"layer {layer} of this {layout.model_type} model"


def _lacking(where: str, missing: Sequence[str], names: Mapping[str, str]) -> StageError:
    """The error of missing names within a layer, with the prefix of the layer's tensors."""
    prefix = next((name.removesuffix(suffix) for suffix, name in names.items()), "")
    return StageError(f"{where} lacks {listed([prefix + suffix for suffix in missing])}; {_REMEDY}")


def _parts(variant: Variant) -> tuple[Writer | Reader, ...]:
    return (*variant.writers, *variant.readers)


def norms_of(part: Writer | Reader) -> tuple[Norm, ...]:
    """The norms between a part and the stream, in their order."""
    if isinstance(part, Writer):
        return part.norms
    return () if part.norm is None else (part.norm,)


def _expanded(weight: str, layout: ModelLayout, names: Mapping[str, str] | None = None) -> list[tuple[int | None, str]]:
    """A name within the layer for each expert; only for the first one if `names` lack that."""
    if "{expert}" not in weight:
        return [(None, weight)]
    if names is not None and weight.replace("{expert}", "0") not in names:
        return [(0, weight.replace("{expert}", "0"))]
    return [(expert, weight.replace("{expert}", str(expert))) for expert in range(expert_count(layout))]


def expert_count(layout: ModelLayout) -> int:
    """How many routed experts a layer has. Raises `StageError`: config.json does not say."""
    if layout.experts is None:
        if not (keys := " or ".join(layout.family.expert_count)):
            raise StageError(f"how many routed experts a layer of this {layout.model_type} model has cannot be counted")
        raise StageError(f"config.json lacks the number of experts ({keys}); correct it, or name another copy")
    return layout.experts


def _check_shape(place: Place, layout: ModelLayout, shape: tuple[int, ...]) -> None:
    dimensions = (1 if place.is_bias else 2) + place.is_fused
    stream = -1 if place.stream_axis == 1 else -2
    experts_fit = not place.is_fused or (bool(shape) and shape[0] == expert_count(layout))
    if len(shape) != dimensions or shape[stream] != layout.hidden_size or not experts_fit:
        does = "write to" if place.writes else "read"
        raise StageError(
            f"{place.tensor} has shape {list(shape)}, which cannot {does} a stream of {layout.hidden_size}; {_REMEDY}"
        )
