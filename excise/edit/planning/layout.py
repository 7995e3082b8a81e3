"""One checkpoint's tensors, sorted by what its layout says of them, with none left out in silence."""

import functools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from excise.checkpoint.weights import FLOATS, Tensor
from excise.plumbing.errors import StageError
from schemas.basis.text import listed
from schemas.model import Layout, ModelLayout, Norm, Reader, Variant, Writer, matcher

INCOMPLETE = "save the checkpoint whole, or name another copy of it"


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

    @property
    def writes(self) -> bool:
        """Whether it writes to the stream, and does not read it."""
        return isinstance(self.part, Writer)

    @property
    def is_fused(self) -> bool:
        """Whether all experts of the layer are one tensor, along its first axis."""
        return self.part.axes.startswith("expert")

    @property
    def stream_axis(self) -> int:
        """Which axis of each matrix is the residual stream's: 0 rows, 1 columns, which stand for a bias's only one."""
        return 1 if self.is_bias or self.writes != self.part.axes.endswith("out in") else 0


def spare_layers(layout: ModelLayout, tensors: Collection[str]) -> list[str]:
    """Prefixes, such as `model.layers.46.` or `mtp.`, of layers that a checkpoint holds beyond those in use, such as
    those for multi-token prediction; they are copied."""
    matches = [found for name in tensors if (found := layer_match(layout.family, name))]
    numbered = {number: found[0] for found in matches if (number := int(found["layer"])) >= layout.layers}
    others = {prefix for prefix in layout.family.spare for name in tensors if name.startswith(prefix)}
    return [numbered[number] for number in sorted(numbered)] + sorted(others)


def layer_match(family: Layout, name: str) -> re.Match[str] | None:
    """The prefix by which a tensor is one of a layer's, with the layer's number as its group; None for others."""
    return next((found for prefix in family.layers if (found := _matcher(prefix).match(name))), None)


_matcher = functools.cache(matcher)


def as_named(family: Layout, tensors: Iterable[str]) -> Layout:
    """A family's layout under the names that a checkpoint has: transformers reads experts that are one tensor each, and
    such as it holds them in memory."""

    def experts(layout: Layout) -> set[str]:
        return {part.weight for part in _every_part(layout) if part.role == "routed_experts"}

    in_memory = family.in_memory()
    within = {name[found.end() :] for name in tensors if (found := layer_match(family, name))}
    return in_memory if (experts(in_memory) - experts(family)) & within else family


def _every_part(family: Layout) -> list[Writer | Reader]:
    return [part for variants in family.sublayers.values() for variant in variants for part in _parts(variant)]


def check_layout(layout: ModelLayout, tensors: Mapping[str, Tensor]) -> None:
    """Resolve every layer in use, whatever the rules will name. Raises `StageError` where the checkpoint and its layout
    disagree, or a tensor that could be edited is of no float type."""
    embedding_and_head(layout, tensors)
    for layer, names in enumerate(sort_by_layer(layout, tensors)):
        for place in resolve_layer(layout, layer, names, tensors):
            if (dtype := tensors[place.tensor].dtype) not in FLOATS:
                raise StageError(
                    f"{place.tensor} is stored as {dtype}, which cannot be edited; name a copy of the model in "
                    "bfloat16, float16 or float32"
                )


def embedding_and_head(layout: ModelLayout, tensors: Collection[str]) -> tuple[str, str | None]:
    """The names of the token embeddings and of the output head; None where the embeddings are the head, too. Of tied
    ones a checkpoint may hold either. Raises `StageError` where it lacks them."""
    family = layout.family
    head = next((name for name in family.heads if name in tensors), None)
    embedding = next((name for name in family.embeddings if name in tensors), None)
    if embedding is None and layout.tied:
        embedding, head = head, None
    if embedding is None or (head is None and not layout.tied):
        lacking = family.embeddings[0] if embedding is None else family.heads[0]
        raise StageError(f"this {layout.model_type} checkpoint has no {lacking}, by whatever name; {INCOMPLETE}")
    return embedding, head


def sort_by_layer(layout: ModelLayout, tensors: Iterable[str]) -> list[dict[str, str]]:
    """For each layer in use, its tensors' names: within the layer → full. Others (embeddings) are left. Raises
    `StageError` where a tensor of a layer is there under two names."""
    layers: list[dict[str, str]] = [{} for _ in range(layout.layers)]
    for name in sorted(tensors):
        found = layer_match(layout.family, name)
        if found is not None and (layer := int(found["layer"])) < layout.layers:
            twin = layers[layer].setdefault(name[found.end() :], name)
            if twin != name:
                raise StageError(f"{twin} and {name} are two names of one tensor; keep one set of names")
    return layers


def resolve_layer(
    layout: ModelLayout, layer: int, names: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> list[Place]:
    """Every writer and reader of one layer, which must hold what its layout declares and nothing else. Raises
    `StageError`, which names the tensors that are missing, unknown or of another shape."""
    where, family = _where(layout, layer), layout.family
    known = {*family.others, family.layer_scalar}
    known |= {name for part in _every_part(family) for norm in norms_of(part) for name in (norm.weight, norm.bias)}
    places: list[Place] = []
    for variant in variants_of(layout, layer, names):
        known |= {*variant.others, variant.router_bias.weight if variant.router_bias else None}
        for part in _parts(variant):
            norms = norms_of(part)
            if unnamed := [norm.weight for norm in norms if norm.weight not in names]:
                raise _lacking(where, unnamed, names)
            through = tuple(names[norm.weight] for norm in norms)
            norm_bias = next((names[norm.bias] for norm in norms if norm.bias is not None and norm.bias in names), None)
            for expert, rest in _expanded(part.weight, layout):
                bias = part.bias and part.bias.replace("{expert}", str(expert))
                known |= {rest, bias}
                if rest in names:
                    place = Place(part, names[rest], layer, through, norm_bias, expert)
                    places.append(place)
                    if bias is not None and bias in names and place.writes:
                        places.append(replace(place, tensor=names[bias], is_bias=True))
    if unknown := sorted(names.keys() - known):
        raise StageError(
            f"{where} has tensors that its layout does not name: {listed([names[rest] for rest in unknown])}; "
            "docs/architectures.md says how to add them to its layout"
        )
    for place in places:
        _check_shape(place, layout, tensors[place.tensor].shape)
    return places


def variants_of(layout: ModelLayout, layer: int, names: Mapping[str, str]) -> list[Variant]:
    """The form that each sublayer of one layer takes: the largest that the layer, of these `names`, holds whole. Raises
    `StageError` where it holds none of them whole."""
    found = []
    for sublayer, variants in layout.family.sublayers.items():
        required = [
            [
                rest
                for part in _parts(variant)
                if isinstance(part, Writer) or not part.optional
                for _, rest in _expanded(part.weight, layout, names)
            ]
            for variant in variants
        ]
        whole = [number for number, rests in enumerate(required) if all(rest in names for rest in rests)]
        if not whole:
            nearest = max(required, key=lambda rests: sum(rest in names for rest in rests))
            missing = [rest for rest in nearest if rest not in names]
            raise _lacking(f"{_where(layout, layer)}: {sublayer}", missing, names)
        found.append(variants[max(whole, key=lambda number: len(required[number]))])
    return found


def _where(layout: ModelLayout, layer: int) -> str:
    return f"layer {layer} of this {layout.model_type} model"


def _lacking(where: str, rests: Sequence[str], names: Mapping[str, str]) -> StageError:
    """The error of names within a layer that are missing, with the prefix that the layer's tensors have."""
    prefix = next((name.removesuffix(rest) for rest, name in names.items()), "")
    return StageError(f"{where} lacks {listed([prefix + rest for rest in rests])}; {INCOMPLETE}")


def _parts(variant: Variant) -> tuple[Writer | Reader, ...]:
    return (*variant.writers, *variant.readers)


def norms_of(part: Writer | Reader) -> tuple[Norm, ...]:
    """The norms that a part goes through, in their order."""
    if isinstance(part, Writer):
        return part.norms
    return () if part.norm is None else (part.norm,)


def _expanded(weight: str, layout: ModelLayout, names: Mapping[str, str] | None = None) -> list[tuple[int | None, str]]:
    """A name within the layer, once for each expert; of a layer without the first one, only that one."""
    if "{expert}" not in weight:
        return [(None, weight)]
    if names is not None and weight.replace("{expert}", "0") not in names:
        return [(0, weight.replace("{expert}", "0"))]
    return [(expert, weight.replace("{expert}", str(expert))) for expert in range(expert_count(layout))]


def expert_count(layout: ModelLayout) -> int:
    """How many routed experts a layer has. Raises `StageError` where config.json does not say."""
    if layout.experts is None:
        keys = " or ".join(layout.family.expert_count)
        raise StageError(f"config.json does not say how many experts there are ({keys})")
    return layout.experts


def _check_shape(place: Place, layout: ModelLayout, shape: tuple[int, ...]) -> None:
    dimensions = (1 if place.is_bias else 2) + place.is_fused
    stream = -1 if place.stream_axis == 1 else -2
    experts_fit = not place.is_fused or (bool(shape) and shape[0] == expert_count(layout))
    if len(shape) != dimensions or shape[stream] != layout.hidden_size or not experts_fit:
        does = "write to" if place.writes else "read"
        raise StageError(
            f"{place.tensor} has shape {list(shape)}, which cannot {does} a stream of {layout.hidden_size}"
        )
