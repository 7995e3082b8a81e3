"""From what was measured in memory to a layout: the same tensors by their names in a checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from transformers import PreTrainedModel

from excise.discovery.gains import TOLERANCE, Gain
from excise.discovery.layout import Found
from excise.discovery.measurement import Read, Written
from excise.discovery.naming import Naming, StoredName, stream_axis
from excise.discovery.stream import NoLayout
from excise.discovery.traits import Traits
from schemas.model import Axes, Embedding, Layout, Norm, Reader, ReaderRole, RouterBias, Variant, Writer, WriterRole

_AXES: dict[tuple[int, int], tuple[Axes, Axes]] = {
    (2, 0): ("out in", "in out"),
    (2, 1): ("in out", "out in"),
    (3, 1): ("expert out in", "expert in out"),
    (3, 2): ("expert in out", "expert out in"),
}
"""By number of axes and the stream's among them: the stored axes of a writer, and of a reader."""
_ROUNDING = 5e-5
_ATTENTION = ("attention", "attention_inputs")


@dataclass(frozen=True)
class _Part:
    """A parameter of a layer that writes or reads."""

    parameter: str
    """Within the layer."""
    value: Tensor
    of: Written | Read
    role: WriterRole | ReaderRole

    @property
    def gains(self) -> tuple[Gain, ...]:
        if isinstance(self.of, Written):
            return self.of.chain
        return () if self.of.gain is None else (self.of.gain,)

    @property
    def kind(self) -> tuple[object, ...]:
        """What parts that one stored tensor holds together have in common."""
        return type(self.of), self.role, self.gains


@dataclass
class _Layer:
    """One layer of the twin."""

    inside: str
    """Prefix of its parameters in memory."""
    names: tuple[StoredName, ...]
    parts: list[_Part]
    stored: Mapping[str, Tensor]
    """Values of the twin, as saved, by names within the layer."""
    traits: Traits
    layers: int
    """How many the twin has."""
    used: set[str] = field(default_factory=set)
    """Stored names that the layout has already."""

    def name_of(self, parameter: str | None) -> str | None:
        """The stored name of what is stored whole."""
        return next((each.name for each in self.names if each.parameter == parameter and each.is_whole), None)


def compose(
    twin: PreTrainedModel,
    found: Found,
    traits: Traits,
    naming: Naming,
    saved: Naming,
    values: Mapping[str, Tensor],
) -> Layout:
    """The layout of checkpoints that name tensors as `naming` does, of a model that is wired as its twin is. `saved` is
    how the twin's own `values` are named. Raises `NoLayout`: the names do not tell what the tensors are."""
    by_layer: list[tuple[Variant, Variant]] = []
    others: dict[str, None] = {}
    for number, own in enumerate(saved.layers):
        names = naming.like(own)
        inside = f"{found.stream.name}.{number}."
        layer = _Layer(
            inside, names, _parts(twin, found, inside), _stored(saved, values, number), traits, len(saved.layers)
        )
        held = [(name, part, axis) for name in names for part, axis in _held(layer, name)]
        attention = [one for one in held if one[1].role in _ATTENTION]
        rest = [one for one in held if one[1].role not in _ATTENTION]
        by_layer.append((_variant(layer, attention), _variant(layer, rest)))
        others |= dict.fromkeys(each.name for each in names if each.name not in layer.used)
    for names in dict.fromkeys(naming.layers):
        saved.like(names)  # the twin has layers of every kind
    embedding, scalar = _token_embedding(twin), _layer_scalar(found, saved, values)
    return Layout(
        model_types=(twin.config.get_text_config().model_type,),
        layers=(naming.prefix,),
        embeddings=(_name_outside(embedding, twin, naming),),
        embedding_norms=_norms_outside(embedding, twin, found, naming),
        other_embeddings=tuple(
            Embedding(
                weight=_name_outside(name, twin, naming),
                parameter=name,
                norms=_norms_outside(name, twin, found, naming),
            )
            for name in found.embeddings
            if name != embedding
        ),
        heads=_head(twin, naming),
        sublayers=_sublayers(by_layer),
        layer_scalar=scalar,
        layer_factors=() if scalar is not None or not found.multiplies_stream else tuple(map(_rounded, found.factors)),
        others=tuple(others),
    )


def _sublayers(by_layer: Sequence[tuple[Variant, Variant]]) -> dict[str, tuple[Variant, ...]]:
    """The variants of attention and of all else; of whole layers, where only the names of both tell variants apart."""
    attention, others = (tuple(dict.fromkeys(variants)) for variants in zip(*by_layer, strict=True))
    whole = tuple(dict.fromkeys(_joined(*both) for both in by_layer))
    for sublayers in ({"attention": attention, "feed_forward": others}, {"layer": whole}):
        if not any(_are_alike(variants) for variants in sublayers.values()):
            return sublayers
    raise NoLayout("layers whose tensors have the same names are wired in different ways")


def _joined(attention: Variant, others: Variant) -> Variant:
    parts = {"writers": attention.writers + others.writers, "readers": attention.readers + others.readers}
    return others.model_copy(update=parts)


def _are_alike(variants: Sequence[Variant]) -> bool:
    """Whether two variants have tensors of the same names."""
    names = [frozenset(part.weight for part in (*variant.writers, *variant.readers)) for variant in variants]
    return len({*names}) < len(names)


def _layer_scalar(found: Found, saved: Naming, values: Mapping[str, Tensor]) -> str | None:
    """The one tensor of each layer, of a single element, by which the layer multiplies its stream, if one does."""
    if not found.multiplies_stream:
        return None
    scalars = []
    for number, factor in enumerate(found.factors):
        stored = _stored(saved, values, number).items()
        scalars.append(
            {name for name, value in stored if value.numel() == 1 and abs(value.item() - factor) < TOLERANCE}
        )
    return min(set.intersection(*scalars), default=None)


def _parts(twin: PreTrainedModel, found: Found, prefix: str) -> list[_Part]:
    values = dict(twin.named_parameters())
    return [
        _Part(name.removeprefix(prefix), values[name], of, role)
        for parts in (found.writers, found.readers)
        for name, (of, role) in parts.items()
        if name.startswith(prefix)
    ]


def _stored(saved: Naming, values: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """The twin's tensors of one layer, by names within it; of experts, that of the first."""
    prefix = saved.prefix.replace("{layer}", str(number))
    return {each.name: values[prefix + each.name.replace("{expert}", "0")] for each in saved.layers[number]}


def _variant(layer: _Layer, chosen: Sequence[tuple[StoredName, _Part, int]]) -> Variant:
    """The layer's attention, or everything else: stored tensors, what they hold, and the stream's axis."""
    bias_of = {
        weight.name: bias.name
        for weight, part, _ in chosen
        for bias, other, _ in chosen
        if _is_bias(other, part) and bias.is_whole
    }
    writers: list[Writer] = []
    readers: list[Reader] = []
    for name, part, axis in chosen:
        if name.name in bias_of.values():
            continue
        is_writer = isinstance(part.of, Written)
        bias = bias_of.get(name.name) if is_writer else _bias_beside(layer, name.name)
        described = _part(layer, name, part, axis, bias)
        if isinstance(described, Writer):
            writers.append(described)
        else:
            readers.append(described)
        layer.used |= {name.name, *([bias] if bias else []), *_names_of_norms(layer, part)}
    return Variant(
        writers=tuple(writers),
        readers=tuple(readers),
        router_bias=_router_bias(layer, [part for _, part, _ in chosen]),
    )


def _is_bias(bias: _Part, weight: _Part) -> bool:
    """Whether two writers are bias and weight of one module, or of the experts of one."""
    both_write = isinstance(bias.of, Written) and isinstance(weight.of, Written)
    if not both_write or bias.parameter.rpartition(".")[0] != weight.parameter.rpartition(".")[0]:
        return False
    shape = list(weight.value.shape)
    del shape[(2 * weight.value.ndim - 3) - weight.of.axis]  # of the last two axes, the one that is not the stream's
    return bias.kind[2] == weight.kind[2] and list(bias.value.shape) == shape and weight.value.ndim > 1


def _held(layer: _Layer, name: StoredName) -> list[tuple[_Part, int]]:
    """The part that a stored tensor holds, with the stream's axis among its own."""
    if name.is_whole:
        return [(part, part.of.axis) for part in layer.parts if part.parameter == name.parameter]
    stored = layer.stored.get(name.name)
    if stored is None:
        raise NoLayout(f"transformers makes {name.parameter} of {name.name}, in a way that it does not save")
    kinds: dict[tuple[object, ...], list[_Part]] = {}
    for part in layer.parts:
        kinds.setdefault(part.kind, []).append(part)
    found = []
    for alike in kinds.values():
        axis = stream_axis(stored, [(part.value, part.of.axis) for part in alike])
        if axis is not None:
            beside = [part for part in alike if part.parameter == name.parameter]
            found.append(((beside or alike)[0], axis))
    return found


def _part(layer: _Layer, name: StoredName, part: _Part, axis: int, bias: str | None) -> Writer | Reader:
    dimensions = part.value.ndim if name.is_whole else layer.stored[name.name].ndim
    if "{expert}" in name.name and part.role not in ("routed_experts", "expert_inputs"):
        raise NoLayout(f"{name.name} is one of several experts, of which tokens do not use equally many")
    if dimensions == 1:  # a bias of no weight
        norms = tuple(_norm(layer, gain) for gain in part.gains)
        module = None if name.name == part.parameter else part.parameter
        shared = {"weight": name.name, "module": module, "axes": "out", "role": part.role}
        return Writer.model_validate({**shared, "norms": norms})
    if (dimensions, axis) not in _AXES:
        raise NoLayout(f"{name.name} has {dimensions} axes, of which the stream's is number {axis}")
    owner, _, attribute = part.parameter.rpartition(".")
    is_plain = name.name.removesuffix(".weight") == owner and attribute == "weight"
    axes = _AXES[dimensions, axis][isinstance(part.of, Read)]
    norms = tuple(_norm(layer, gain) for gain in part.gains)
    shared = {"weight": name.name, "bias": bias, "axes": axes, "module": None if is_plain else owner, "role": part.role}
    if isinstance(part.of, Written):
        if any(norm.kind == "layer" for norm in norms):
            raise NoLayout(f"{name.name} writes through a LayerNorm, whose bias writes too")
        return Writer.model_validate({**shared, "norms": norms, **_traits(layer, part)})
    return Reader.model_validate({**shared, "norm": norms[0] if norms else None})


def _traits(layer: _Layer, part: _Part) -> dict[str, object]:
    parameter = layer.inside + part.parameter
    gate = layer.traits.gates.get(parameter)
    router = layer.traits.routers.get(parameter)
    multipliers = layer.traits.multipliers(parameter, layer.layers)
    if part.role == "routed_experts" and router is None:
        raise NoLayout(f"the experts of {parameter} are not one tensor of three axes, so their use cannot be counted")
    return {
        "gate": gate and layer.name_of(gate.removeprefix(layer.inside)),
        "routed": router.routed if router else "output",
        "before_norms": _rounded(layer.traits.before_norm(parameter)),
        **({"multiplier": _rounded(multipliers[0])} if len(multipliers) == 1 else {}),
        **({"multipliers": tuple(map(_rounded, multipliers))} if len(multipliers) > 1 else {}),
    }


def _rounded(factor: float) -> float:
    """Without the digits that other writes of a block reach."""
    return 1.0 if abs(factor - 1) <= _ROUNDING else float(f"{factor:.6g}")


def _router_bias(layer: _Layer, parts: Sequence[_Part]) -> RouterBias | None:
    """Of the router of these parts."""
    for part in parts:
        router = layer.traits.routers.get(layer.inside + part.parameter)
        if router is not None and router.bias is not None:
            buffer = router.bias.removeprefix(layer.inside)
            if (name := layer.name_of(buffer)) is None:
                raise NoLayout(f"{router.bias}, with which its router chooses, is not stored")
            layer.used.add(name)
            in_memory = None if name == buffer else buffer
            return RouterBias(weight=name, buffer=in_memory, selects_only=router.selects_only)
    return None


def _norm(layer: _Layer, gain: Gain) -> Norm:
    weight, bias = _names_of_norm(layer, gain)
    if gain.weight is not None and weight is None:
        raise NoLayout(f"the norm {gain.weight} is not stored under a name of its own")
    module = (gain.weight or "").removeprefix(layer.inside).removesuffix(".weight")
    in_memory = None if weight is None or weight.removesuffix(".weight") == module else module
    return Norm(weight=weight, offset=gain.offset, kind=gain.kind, bias=bias, module=in_memory)


def _names_of_norm(layer: _Layer, gain: Gain) -> tuple[str | None, str | None]:
    """Of its weight and, if it is a LayerNorm, of its bias."""
    if gain.weight is None:
        return None, None
    parameter = gain.weight.removeprefix(layer.inside)
    bias = f"{parameter.rpartition('.')[0]}.bias" if gain.kind == "layer" else None
    return layer.name_of(parameter), layer.name_of(bias)


def _names_of_norms(layer: _Layer, part: _Part) -> set[str]:
    return {name for gain in part.gains for name in _names_of_norm(layer, gain) if name is not None}


def _bias_beside(layer: _Layer, name: str) -> str | None:
    bias = f"{name.rpartition('.')[0]}.bias"
    return bias if any(each.name == bias for each in layer.names) else None


def _token_embedding(twin: PreTrainedModel) -> str:
    """The parameter's name in memory."""
    embedding = twin.get_input_embeddings()
    return next(f"{name}.weight" for name, module in twin.named_modules() if module is embedding)


def _norms_outside(name: str, twin: PreTrainedModel, found: Found, naming: Naming) -> tuple[Norm, ...]:
    """The norms behind an embedding."""
    if name not in found.embeddings:
        raise NoLayout(f"{name} does not write to the stream")
    written = found.embeddings[name]
    if written.axis != len(dict(twin.named_parameters())[name].shape) - 1:
        raise NoLayout(f"the stream is not the last axis of {name}")
    return tuple(
        Norm(weight=gain.weight and _name_outside(gain.weight, twin, naming), offset=gain.offset, kind=gain.kind)
        for gain in written.chain
    )


def _name_outside(parameter: str, twin: PreTrainedModel, naming: Naming) -> str:
    """Its name in the files, or that of what it is tied to."""
    tied = [pair for pair in twin.all_tied_weights_keys.items() if parameter in pair]
    for name in (parameter, *(name for pair in tied for name in pair)):
        if name in naming.outside:
            return naming.outside[name]
    raise NoLayout(f"the checkpoint does not hold {parameter}")


def _head(twin: PreTrainedModel, naming: Naming) -> tuple[str, ...]:
    head = twin.get_output_embeddings()
    names = [f"{name}.weight" for name, module in twin.named_modules() if module is head and head is not None]
    return tuple(naming.outside[name] for name in names if name in naming.outside)
