"""The layout of a model type that no file describes: measured on a twin of the model, named as its checkpoint names
tensors, and proven on the twin, saved under these names."""

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from excise.checkpoint.weights import SINGLE
from excise.discovery.composition import compose
from excise.discovery.gains import TOLERANCE
from excise.discovery.layout import Found, find_layout
from excise.discovery.naming import Naming, naming_of
from excise.discovery.nested import at, replaced
from excise.discovery.proof import prove
from excise.discovery.stream import NoLayout, Stream, find_stream, run
from excise.discovery.traits import Traits, find_traits
from excise.discovery.twin import MOST_LAYERS, build, double_precision, twin_config
from excise.edit.inspection import is_tied
from excise.inference.loading.models import auto_class, decoder
from excise.plumbing.errors import StageError
from schemas.basis.text import listed, shorten
from schemas.model import Layout, MeasuredFamily, ModelLayout

_FEWEST_LAYERS = 4
_MORE_LAYERS = 12
_PROMPTS = 3, 11
"""Prompts, and tokens of each."""
_TOKENS = 3, 80
"""Between special tokens at either end of a twin's vocabulary."""


def measure_family(config: Any, whole: PreTrainedModel, stored: Collection[str]) -> MeasuredFamily:
    """The layout of a model, `whole` of which is on the meta device and whose files hold the tensors `stored`. Raises
    `NoLayout`, with the measured reason."""
    model_class = auto_class(config)
    first, last = _TOKENS
    vocabulary = min(last, config.get_text_config().vocab_size)
    ids = torch.randint(first, vocabulary, _PROMPTS, generator=torch.Generator().manual_seed(3))
    with double_precision():
        twin, small, stream = _twin(config, model_class, whole, stored, ids)
        # Some models add tokens of their own, and directions are needed that are orthogonal to all of them.
        if stream.rows > ids.numel() or 2 * stream.rows > stream.hidden + 8:
            ids = ids[:1]
        found = find_layout(twin, ids)
        _refuse_what_follows_the_layers(twin, ids, stream)
        traits = find_traits(twin, ids, found)
        if any(abs(factor - 1) > TOLERANCE for factor in traits.factors.values()):
            traits = _of_all_layers(traits, config, model_class, ids, found)
    naming = naming_of(whole, stream.name, stored)
    with tempfile.TemporaryDirectory(prefix="excise-") as work:
        folder = Path(work) / "twin"
        values = _saved(twin, small, folder)
        saved = naming_of(twin, stream.name, values)
        layout = compose(twin, found, traits, naming, saved, values)
        _rename(twin, folder, stream, naming, saved, values)
        try:
            proof = prove(folder, _layout_of(twin, layout, found), ids, Path(work) / "edited")
        except StageError as error:
            raise NoLayout(f"its twin cannot be edited: {str(error).replace(f'{work}/', '')}") from None
    return MeasuredFamily(layout=layout, experts=_experts(whole, found), proof=proof)


def _of_all_layers(traits: Traits, config: Any, model_class: Any, ids: Tensor, found: Found) -> Traits:
    """The same with factors measured on a twin as deep as the whole model: some depend on the number of layers."""
    deep, _ = _built(config, model_class, config.get_text_config().num_hidden_layers)
    stream = find_stream(deep, ids)
    factors = find_traits(deep, ids, replace(found, stream=stream)).factors
    return replace(traits, factors=factors)


def _twin(
    config: Any, model_class: Any, whole: PreTrainedModel, stored: Collection[str], ids: Tensor
) -> tuple[PreTrainedModel, Any, Stream]:
    """The twin with its config and its stream, and as many layers as show every kind that the whole model has."""
    twin, small = _smallest(config, model_class)
    stream = find_stream(twin, ids)
    named = naming_of(whole, stream.name, stored).layers
    layers = whole.get_submodule(stream.name).children()
    # Layers that share weights are alike in memory, and only one of them is stored with these.
    kinds = [(_kind(layer), names) for layer, names in zip(layers, named, strict=True)]
    needed = max(kinds.index(kind) for kind in kinds) + 1
    if needed <= len(stream.blocks):
        return twin, small, stream
    if needed > MOST_LAYERS:
        raise NoLayout(f"layer {needed - 1} is the first of its kind, and a twin has {MOST_LAYERS} layers at most")
    twin, small = _built(config, model_class, needed)
    return twin, small, find_stream(twin, ids)


def _smallest(config: Any, model_class: Any) -> tuple[PreTrainedModel, Any]:
    """With few layers, but as many as its class accepts: some say of which kind the last one is."""
    try:
        return _built(config, model_class, _FEWEST_LAYERS)
    except NoLayout:
        return _built(config, model_class, _MORE_LAYERS)


def _built(config: Any, model_class: Any, layers: int) -> tuple[PreTrainedModel, Any]:
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


def _saved(twin: PreTrainedModel, small: Any, folder: Path) -> dict[str, Tensor]:
    """Save the twin as transformers does, and its config, which may be that of a wrapper; its tensors by name."""
    twin.save_pretrained(folder)
    small.save_pretrained(folder)
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def _refuse_what_follows_the_layers(twin: PreTrainedModel, ids: Tensor, stream: Stream) -> None:
    """No matrix of the decoder may be used behind the last layer, as what a block there writes would not be edited; nor
    embeddings, unless they are the output head."""
    head = twin.get_output_embeddings()
    known = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    if is_tied(twin):
        known |= {id(parameter) for parameter in twin.get_input_embeddings().parameters()}
    inside = {id(parameter) for parameter in decoder(twin).parameters()} - known
    last = stream.blocks[-1]

    def cut(_module: nn.Module, _args: Any, returned: Any) -> Any:
        return replaced(returned, stream.exits[-1], at(returned, stream.exits[-1]).detach())

    matrices = {
        name: parameter
        for name, parameter in twin.named_parameters()
        if parameter.ndim > 1 and parameter.requires_grad and id(parameter) in inside
    }
    hook = last.register_forward_hook(cut)
    try:
        logits = run(twin, ids).logits
    finally:
        hook.remove()
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(4))
    found = torch.autograd.grad((logits * noise).sum(), list(matrices.values()), allow_unused=True)
    used = [name for name, gradient in zip(matrices, found, strict=True) if gradient is not None and gradient.any()]
    if used:
        raise NoLayout(f"{listed(used)} is used behind the last layer, where an edit does not reach")


def _rename(
    twin: PreTrainedModel, folder: Path, stream: Stream, naming: Naming, saved: Naming, values: Mapping[str, Tensor]
) -> None:
    """Save it again, in float32, with the names of the whole model's files."""
    state = twin.state_dict()
    tensors = {naming.outside.get(target, name): values[name] for target, name in saved.outside.items()}
    for number, own in enumerate(saved.layers):
        before, after = (each.prefix.replace("{layer}", str(number)) for each in (saved, naming))
        for stored in naming.like(own):
            if stored.is_whole:
                tensors[after + stored.name] = state[f"{stream.name}.{number}.{stored.parameter}"]
                continue
            for expert in range(stored.experts(values, before)):
                name = stored.name.replace("{expert}", str(expert))
                tensors[after + name] = values[before + name]
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    floats = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    # One file would refuse tensors that share memory.
    save_file({name: tensor.clone().contiguous() for name, tensor in floats.items()}, folder / SINGLE, {"format": "pt"})


def _layout_of(twin: PreTrainedModel, layout: Layout, found: Found) -> ModelLayout:
    text = twin.config.get_text_config()
    return ModelLayout(
        model_type=text.model_type,
        layers=len(found.stream.blocks),
        hidden_size=found.stream.hidden,
        experts=_experts(twin, found),
        residual_multiplier=1.0,
        tied=is_tied(twin),
        family=layout,
    )


def _experts(model: PreTrainedModel, found: Found) -> int | None:
    """How many routed experts each layer of a model has that is wired as the measured one."""
    container = f"{found.stream.name}."
    suffixes = {
        name.removeprefix(container).partition(".")[2]
        for name, (_, role) in found.writers.items()
        if role == "routed_experts"
    }
    counts = {
        parameter.shape[0]
        for name, parameter in model.named_parameters()
        if name.startswith(container) and name.removeprefix(container).partition(".")[2] in suffixes
        if parameter.ndim > 2
    }
    if len(counts) > 1:
        raise NoLayout(f"its layers have {listed(sorted(map(str, counts)))} routed experts")
    return next(iter(counts), None)
