"""Small models that stand for a whole one, one with every kind of its layers and one with all of them, and how they are
saved under the names of its files."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from excise.checkpoint.weights import SINGLE
from excise.discovery.naming import Naming, naming_of
from excise.discovery.stream import NoLayout, Stream, find_stream
from excise.discovery.twin import MOST_LAYERS, build, twin_config
from schemas.basis.text import shorten

_FEWEST_LAYERS = 4
_MORE_LAYERS = 12


@dataclass(frozen=True)
class Twin:
    """A small model that is wired as another one."""

    model: PreTrainedModel
    config: Any
    """Of the model, or of the wrapper that it is in."""
    stream: Stream


def twin_of(whole: PreTrainedModel, config: Any, model_class: Any, stored: Collection[str], ids: Tensor) -> Twin:
    """One with as many layers as show every kind that the whole model has."""
    twin = _smallest(config, model_class, ids)
    named = naming_of(whole, twin.stream.name, stored).layers
    # Layers that share weights are alike in memory, and only one of them is stored with these.
    kinds = [(_kind(layer), names) for layer, names in zip(_layers(whole, twin), named, strict=True)]
    needed = max(kinds.index(kind) for kind in kinds) + 1
    if needed <= len(twin.stream.blocks):
        return twin
    if needed > MOST_LAYERS:
        raise NoLayout(f"layer {needed - 1} is the first of its kind, and a twin has {MOST_LAYERS} layers at most")
    return _built(config, model_class, needed, ids)


def with_all_layers(whole: PreTrainedModel, config: Any, model_class: Any, twin: Twin, ids: Tensor) -> Twin:
    """One as deep as the whole model: what a layer does may depend on its number, or on how many there are."""
    layers = len(_layers(whole, twin))
    return twin if layers == len(twin.stream.blocks) else _built(config, model_class, layers, ids)


def _layers(whole: PreTrainedModel, twin: Twin) -> list[nn.Module]:
    return list(whole.get_submodule(twin.stream.name).children())


def _smallest(config: Any, model_class: Any, ids: Tensor) -> Twin:
    """With few layers, but as many as its class accepts: some say of which kind the last one is."""
    try:
        model, small = _model(config, model_class, _FEWEST_LAYERS)
    except NoLayout:
        model, small = _model(config, model_class, _MORE_LAYERS)
    return Twin(model, small, find_stream(model, ids))


def _built(config: Any, model_class: Any, layers: int, ids: Tensor) -> Twin:
    model, small = _model(config, model_class, layers)
    return Twin(model, small, find_stream(model, ids))


def _model(config: Any, model_class: Any, layers: int) -> tuple[PreTrainedModel, Any]:
    try:
        small = twin_config(config, layers)
        return build(small, model_class), small
    except Exception as error:  # config classes and models check sizes in ways of their own
        raise NoLayout(
            f"no small model of its config.json can be made: {shorten(' '.join(str(error).split()), 150)}"
        ) from None


def _kind(layer: nn.Module) -> tuple[object, ...]:
    """What layers of one kind have in common: modules, their sizes, and their flags."""
    flags = (
        tuple(sorted((name, value) for name, value in vars(module).items() if isinstance(value, bool | str)))
        for module in layer.modules()
    )
    return repr(layer), tuple(flags)


def save(twin: Twin, folder: Path) -> dict[str, Tensor]:
    """Save the twin as transformers does, and its config, which may be that of a wrapper; its tensors by name."""
    twin.model.save_pretrained(folder)
    twin.config.save_pretrained(folder)
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def rename(twin: Twin, folder: Path, naming: Naming, saved: Naming, values: Mapping[str, Tensor]) -> None:
    """Save it again, in float32, with the names of the whole model's files."""
    state = twin.model.state_dict()
    tensors = {naming.outside.get(target, name): values[name] for target, name in saved.outside.items()}
    for number, own in enumerate(saved.layers):
        before, after = (each.prefix.replace("{layer}", str(number)) for each in (saved, naming))
        for stored in naming.like(own):
            if stored.is_whole:
                tensors[after + stored.name] = state[f"{twin.stream.name}.{number}.{stored.parameter}"]
                continue
            for expert in range(stored.experts(values, before)):
                name = stored.name.replace("{expert}", str(expert))
                tensors[after + name] = values[before + name]
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    floats = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    # One file would refuse tensors that share memory.
    save_file({name: tensor.clone().contiguous() for name, tensor in floats.items()}, folder / SINGLE, {"format": "pt"})
