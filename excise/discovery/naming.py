"""How a checkpoint names the tensors of decoder layers, and what of a model in memory each of them holds."""

import itertools
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from excise.discovery.stream import NoLayout
from excise.plumbing.private.transformers import conversions, targets
from schemas.basis.text import listed


@dataclass(frozen=True)
class StoredName:
    """One tensor of a layer in a file, whose `{expert}` stands for each expert's number."""

    name: str
    """Within the layer."""
    parameter: str
    """In memory within the layer: what it becomes, or becomes a part of."""
    is_whole: bool
    """Whether it is that parameter, only under another name."""

    def experts(self, stored: Collection[str], prefix: str) -> int:
        """How many tensors of a layer its name stands for."""
        names = (prefix + self.name.replace("{expert}", str(expert)) for expert in itertools.count())
        return sum(1 for _ in itertools.takewhile(stored.__contains__, names)) if "{expert}" in self.name else 1


@dataclass(frozen=True)
class Naming:
    """The names of one checkpoint."""

    prefix: str
    """Of a layer's tensors, with `{layer}`; the same for all of them."""
    layers: tuple[tuple[StoredName, ...], ...]
    """By layer."""
    outside: Mapping[str, str]
    """By parameter in memory outside of the layers, the tensor in the file."""

    def like(self, names: Iterable[StoredName]) -> tuple[StoredName, ...]:
        """The names of the first layer that holds the same parameters as these. Raises `NoLayout`: there is none."""
        wanted = {each.parameter for each in names}
        for layer in self.layers:
            if {each.parameter for each in layer} == wanted:
                return layer
        raise NoLayout(f"no layer holds {listed(sorted(wanted))} and nothing else")


def naming_of(model: PreTrainedModel, blocks: str, stored: Iterable[str]) -> Naming:
    """The names of `stored` tensors, as transformers would load them into a model, which may be on the meta device.
    `blocks` is the name of its list of blocks. Raises `NoLayout`: its layers have no common names."""
    container = f"{blocks}."
    count = len(list(model.get_submodule(blocks).children()))
    layers: list[dict[str, StoredName]] = [{} for _ in range(count)]
    outside: dict[str, str] = {}
    prefixes: set[str] = set()
    for stored_name, (target, pattern) in targets(model, stored, conversions(model)).items():
        if not target.startswith(container):
            outside[target] = stored_name
            continue
        number, _, parameter = target.removeprefix(container).partition(".")
        match = re.match(rf"(.*?(?:^|\.)){number}\.(.+)", stored_name)
        if match is None:
            raise NoLayout(f"{stored_name} becomes {target}, but does not name its layer")
        prefixes.add(match[1])
        layers[int(number)][match[2]] = StoredName(match[2], parameter, is_whole=pattern is None)
    if len(prefixes) != 1:
        raise NoLayout(f"the tensors of its layers have several prefixes: {listed(sorted(prefixes))}")
    named = tuple(_with_experts(names) for names in layers)
    return Naming(f"{prefixes.pop()}{{layer}}.", named, outside)


def _with_experts(names: Mapping[str, StoredName]) -> tuple[StoredName, ...]:
    """Names that differ only in one number are those of experts, if together they make one parameter."""
    alike: dict[tuple[str, str], list[StoredName]] = defaultdict(list)
    for name, stored in names.items():
        general = re.sub(r"\.\d+\.", ".{expert}.", name, count=1)
        is_part = not stored.is_whole and general != name
        alike[(general if is_part else name, stored.parameter)].append(stored)
    return tuple(
        StoredName(name, parameter, is_whole=group[0].is_whole) for (name, parameter), group in sorted(alike.items())
    )


def stream_axis(stored: Tensor, parts: Iterable[tuple[Tensor, int]]) -> int | None:
    """Which axis of a stored tensor is the stream's, if all vectors along it are vectors of these parameters along
    theirs; None if there is none. Random values make chance impossible."""
    known = {vector for parameter, axis in parts for vector in _vectors(parameter, axis)}
    hidden = {parameter.shape[axis] for parameter, axis in parts}
    for axis, size in enumerate(stored.shape):
        if size in hidden and _vectors(stored, axis) <= known:
            return axis
    return None


def _vectors(tensor: Tensor, axis: int) -> set[bytes]:
    rows = tensor.detach().movedim(axis, -1).reshape(-1, tensor.shape[axis]).contiguous()
    return {row.numpy().tobytes() for row in rows}
