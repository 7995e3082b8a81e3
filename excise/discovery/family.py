"""The layout of a model type that no file describes: measured on a twin of the model, named as its checkpoint names
tensors, and proven on the twin, saved under these names."""

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from excise.discovery.composition import compose
from excise.discovery.ending import refuse_what_follows
from excise.discovery.gains import TOLERANCE
from excise.discovery.layout import Found, find_layout
from excise.discovery.naming import Naming, naming_of
from excise.discovery.proof import SavedTwin, Unaccounted, is_blinded, prove
from excise.discovery.stream import NoLayout, find_stream
from excise.discovery.traits import Traits, find_traits
from excise.discovery.twin import MOST_LAYERS, build, double_precision
from excise.discovery.twins import Twin, rename, save, twin_of, with_all_layers
from excise.edit.inspection import is_tied
from excise.inference.loading.models import auto_class
from excise.plumbing.errors import StageError
from schemas.basis.text import listed
from schemas.model import Layout, LayoutProof, MeasuredFamily, ModelLayout

_PROMPTS = 3, 11
"""Prompts, and tokens of each."""
_TOKENS = 3, 80
"""Between special tokens at either end of a twin's vocabulary."""


def measure_family(config: Any, whole: PreTrainedModel, stored: Collection[str]) -> MeasuredFamily:
    """The layout of a model, `whole` of which is on the meta device and whose files hold the tensors `stored`. Raises
    `NoLayout`, with the measured reason."""
    model_class = auto_class(config)
    first, last = _TOKENS
    tokens = torch.arange(first, min(last, config.get_text_config().vocab_size))
    ids = tokens[torch.randint(len(tokens), _PROMPTS, generator=torch.Generator().manual_seed(3))]
    with double_precision():
        twin = twin_of(whole, config, model_class, stored, ids)
        deep = with_all_layers(whole, config, model_class, twin, ids)
    if twin.stream.rows != ids.numel():
        raise NoLayout(f"its stream has {twin.stream.rows} tokens where the prompts have {ids.numel()}")
    # Directions are needed that are orthogonal to all tokens.
    if 2 * twin.stream.rows > twin.stream.hidden + 8:
        ids = ids[:1]
    # Every token, in longer prompts: what a layer adds may depend on either.
    shuffled = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(6))]
    prompts = shuffled[: len(tokens) // 2 * 2].reshape(2, -1)
    naming = naming_of(whole, twin.stream.name, stored)
    try:
        found, layout, proof = _proven(twin, deep, model_class, naming, ids, prompts)
    except Unaccounted:
        if deep is twin:
            raise
        # Numbers that are no weights may depend on a layer's own number, or on how many layers there are.
        found, layout, proof = _proven(deep, deep, model_class, naming, ids, prompts)
    return MeasuredFamily(layout=layout, experts=_experts(whole, found), proof=proof)


def _proven(
    twin: Twin, deep: Twin, model_class: Any, naming: Naming, ids: Tensor, prompts: Tensor
) -> tuple[Found, Layout, LayoutProof]:
    """The layout as measured on a twin, on `ids`, and its proof, also on one with all layers, on `prompts`."""
    with double_precision():
        found, traits = _measured(twin, ids)
        factors = [*traits.factors.values(), *traits.before_norms.values()]
        multiplies = found.multiplies_stream or any(abs(factor - 1) > TOLERANCE for factor in factors)
        if multiplies and len(twin.stream.blocks) <= MOST_LAYERS:  # of a deeper one, the first layers were asked before
            _refuse_parameters(traits, twin, model_class, ids)
    with tempfile.TemporaryDirectory(prefix="excise-") as name:
        work = Path(name)
        values = save(twin, work / "twin")
        saved = naming_of(twin.model, twin.stream.name, values)
        layout = compose(twin.model, found, traits, naming, saved, values)
        if deep is not twin and _by_layer(layout):
            raise Unaccounted("each of its layers multiplies by numbers of its own")
        rename(twin, work / "twin", naming, saved, values)
        small = all_layers = SavedTwin(work / "twin", _layout_of(twin, layout, found))
        if deep is not twin:
            values = save(deep, work / "deep")
            rename(deep, work / "deep", naming, naming_of(deep.model, deep.stream.name, values), values)
            all_layers = SavedTwin(work / "deep", _layout_of(deep, layout, found))
        try:
            proof = prove(small, all_layers, prompts, work / "edited")
            reads_elsewhere = not is_blinded(all_layers, prompts, work / "blinded")
        except StageError as error:
            raise NoLayout(f"its twin cannot be edited: {str(error).replace(f'{work}/', '')}") from None
    return found, layout.model_copy(update={"reads_elsewhere": reads_elsewhere}), proof


def _measured(twin: Twin, ids: Tensor) -> tuple[Found, Traits]:
    found = find_layout(twin.model, ids)
    refuse_what_follows(twin.model, ids, twin.stream)
    return found, find_traits(twin.model, ids, found)


def _refuse_parameters(traits: Traits, twin: Twin, model_class: Any, ids: Tensor) -> None:
    """A number that multiplies what is written has to be the same with other weights."""
    model = build(twin.config, model_class, seed=1)
    _, others = _measured(Twin(model, twin.config, find_stream(model, ids)), ids)
    pairs = [(traits.factors, others.factors), (traits.before_norms, others.before_norms)]
    for name, factor, other in ((name, one[name], two.get(name)) for one, two in pairs for name in one):
        if other is not None and abs(other - factor) > TOLERANCE * abs(factor):
            raise NoLayout(f"what {name} writes is multiplied by a parameter, which no layout can name")


def _by_layer(layout: Layout) -> bool:
    """Whether it has numbers for single layers."""
    return bool(layout.layer_factors) or any(writer.multipliers for writer in layout.writers)


def _layout_of(twin: Twin, layout: Layout, found: Found) -> ModelLayout:
    text = twin.model.config.get_text_config()
    return ModelLayout(
        model_type=text.model_type,
        layers=len(twin.stream.blocks),
        hidden_size=found.stream.hidden,
        experts=_experts(twin.model, found),
        residual_multiplier=1.0,
        tied=is_tied(twin.model),
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
