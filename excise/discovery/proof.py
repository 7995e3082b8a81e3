"""The proof of a layout: with every writer projected, nothing of the direction is left in a twin's stream; with any one
of them left out, or projected along its other axis, something is; and what its writers add is all that layers add."""

import itertools
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from excise.checkpoint.base_model import BaseModel
from excise.checkpoint.weights import read_checkpoint
from excise.discovery.stream import NoLayout, run
from excise.edit.checkpoint import write_edited
from excise.edit.planning.plan import CannotEdit, Edit, make_plan
from excise.edit.planning.projectors import Directions, unit_vector
from excise.inference.forward import on_input, on_output, split_call, stream_of
from excise.inference.loading.models import decoder_layers, load_model
from excise.residual.contributions import Trace, components
from schemas.model import LayoutProof, ModelLayout, ModelManifest
from schemas.params.ablate import Ablate

EXACT = 1e-6
"""The most of the stream that may lie along the direction after the edit, in float32."""
SEEN = 1e-5
"""The least of it that must once something is missing."""
ACCOUNTED = 1e-5
"""The most of it that may come from elsewhere than writers, before the edit."""
WRITERS = "attention", "mlp", "routed_experts", "shared_experts", "per_layer_input", "embedding"
"""Targets that write."""
READERS = "attention_inputs", "mlp_inputs", "expert_inputs", "router"
"""Targets that read."""
BLIND = 1e-4
"""The most by which what layers add may depend on the direction, of the stream, once every reader is edited."""
_DIRECTIONS_TRIED = 8
_CPU = torch.device("cpu")


class Unaccounted(NoLayout):
    """Layers add to the stream what the layout does not say, although every writer was found."""


class SavedTwin(NamedTuple):
    """A small model in a folder, named as the model that it stands for, in float32."""

    folder: Path
    layout: ModelLayout


def prove(twin: SavedTwin, deep: SavedTwin, ids: Tensor, work: Path) -> LayoutProof:
    """Edit a twin in float32, as any model is edited, and measure what is left along a random direction after every
    layer, on ``[prompts, tokens]``; the same of one as deep as the model, and whether what its writers add is all that
    its layers add. `work` is an empty folder. Raises `NoLayout`: the layout is not exact, or what one of its writers
    adds cannot be seen."""
    base, unit = base_of(*twin), random_direction(twin.layout.hidden_size)
    edits = edits_of(base, WRITERS, unit)
    numbers = itertools.count()

    def left(changed: Sequence[Edit], base: BaseModel = base) -> tuple[float, float]:
        target = work / str(next(numbers))
        target.mkdir(parents=True)
        write_edited(base, target, changed, [], _CPU, lambda _: None)
        return _component(load_model(read_checkpoint(target), "float32", _CPU), ids, unit)

    def cleared(base: BaseModel, edits: Sequence[Edit]) -> tuple[float, float]:
        _, before = _component(load_model(base.checkpoint, "float32", _CPU), ids, unit)
        entering, component = left(edits, base)
        if not entering <= EXACT:
            raise NoLayout(
                f"after an edit of all its embeddings, {entering:.1e} of its stream lies along the direction before "
                "the first layer, so something that is no weight is added there, such as fixed positions"
            )
        if not component <= EXACT:
            raise NoLayout(
                f"after an edit of every writer that was found, {component:.1e} of its stream lies along the direction "
                f"(before, {before:.1e}), so something else writes to it"
            )
        return before, component

    before, component = cleared(base, edits)
    whole = base_of(*deep)
    if deep != twin:
        component = max(component, cleared(whole, edits_of(whole, WRITERS, unit))[1])
    unaccounted = _unaccounted(whole, ids, unit)
    if not unaccounted <= ACCOUNTED:
        raise Unaccounted(
            f"what its writers were measured to add differs by {unaccounted:.1e} of its stream from what its layers add"
        )
    names = dict.fromkeys(map(_name, edits))
    left_out = {name: left([edit for edit in edits if _name(edit) != name])[1] for name in names}
    turnable = dict.fromkeys(_name(edit) for edit in edits if _is_square(edit, base))
    turned = {name: left([_turned(edit) if _name(edit) == name else edit for edit in edits])[1] for name in turnable}
    for what, shares in (("is left out", left_out), ("is projected along its other axis", turned)):
        if unseen := [name for name, share in shares.items() if share <= SEEN]:
            raise NoLayout(f"if {unseen[0]} {what}, nothing is seen: {shares[unseen[0]]:.1e} of its stream")
    return LayoutProof(before=before, component=component, left_out=left_out, turned=turned, unaccounted=unaccounted)


def is_blinded(twin: SavedTwin, ids: Tensor, work: Path) -> bool:
    """Whether nothing that the layers add depends on a direction of the stream once all readers that were found are
    edited; false too where norms forbid the edit along each of some directions. `work` is an empty folder."""
    base = base_of(*twin)
    random = [random_direction(twin.layout.hidden_size, seed) for seed in range(_DIRECTIONS_TRIED)]
    # Adding one to the stream changes no LayerNorm's mean.
    directions = [unit_vector(direction - direction.mean()) for direction in random]
    # With writers edited too, the stream has nothing along it but what is added here.
    possible = first_possible(base, (*WRITERS, *READERS), directions)
    if possible is None:
        return False
    unit, edits = possible
    work.mkdir(parents=True)
    write_edited(base, work, edits, [], _CPU, lambda _: None)
    return _dependence(load_model(read_checkpoint(work), "float32", _CPU), ids, unit) <= BLIND


def _dependence(model: PreTrainedModel, ids: Tensor, unit: Tensor) -> float:
    """How far what a layer returns is apart, but for the direction itself, between a stream to which as much of a unit
    vector was added as there is in it, and one with the opposite added: neither changes a norm. Of the layer and the
    token where it is most, as some readers look at far tokens only."""
    along, apart = unit.float(), [0.0]

    def compare(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream, others, named = split_call(args, kwargs)
        length = stream.norm(dim=-1, keepdim=True)
        # `forward`, because a call would run this hook again.
        returned = [
            stream_of(layer.forward(stream + sign * length * along, *others, **named)).double() for sign in (1, -1)
        ]
        one, other = (each - (each @ unit)[..., None] * unit for each in returned)
        apart.append(float(((one - other).norm(dim=-1) / other.norm(dim=-1)).max()))

    with ExitStack() as hooks, torch.inference_mode():
        for layer in decoder_layers(model):
            hooks.callback(layer.register_forward_pre_hook(compare, with_kwargs=True).remove)
        run(model, ids)
    return max(apart)


def base_of(folder: Path, layout: ModelLayout) -> BaseModel:
    """A small float32 model in a folder as one that is edited."""
    return BaseModel(manifest_of(layout), layout, read_checkpoint(folder))


def manifest_of(layout: ModelLayout) -> ModelManifest:
    """The manifest of a float32 model of this layout, without the digests of its files."""
    return ModelManifest(
        source="folder",
        model_type=layout.model_type,
        dtype="float32",
        layers=layout.layers,
        hidden_size=layout.hidden_size,
        files=[],
    )


def random_direction(hidden: int, seed: int = 1) -> Tensor:
    """A unit vector ``[hidden]``."""
    return unit_vector(torch.randn(hidden, generator=torch.Generator().manual_seed(seed)))


def edits_of(base: BaseModel, targets: Sequence[str], direction: Tensor) -> list[Edit]:
    """What removes a direction ``[hidden]`` from these targets in all layers. Raises `CannotEdit`: their norms forbid
    it."""
    ablate = {
        "targets": list(targets),
        "through_norm": "orthogonal",
        "allow_tied": True,
        "rules": [{"layers": "all", "measurement": 1, "scale": 1.0}],
    }
    measurements = base.layout.layers + 1
    same = direction.expand(measurements, -1)
    directions = Directions(same, torch.zeros_like(same), (None,) * measurements)
    return make_plan(Ablate.model_validate(ablate), base, directions)


def first_possible(
    base: BaseModel, targets: Sequence[str], directions: Sequence[Tensor]
) -> tuple[Tensor, list[Edit]] | None:
    """The first direction along which these targets can be edited, and the edits; None if norms forbid all."""
    for direction in directions:
        with suppress(CannotEdit):
            return direction, edits_of(base, targets, direction)
    return None


def _name(edit: Edit) -> str:
    """Of what is edited, the same in every layer."""
    return edit.tensor if edit.place is None else edit.place.part.weight


def _is_square(edit: Edit, base: BaseModel) -> bool:
    """Whether it could be projected along either axis."""
    shape = base.tensors[edit.tensor].shape
    return edit.place is not None and not edit.place.is_bias and shape[-1] == shape[-2]


def _turned(edit: Edit) -> Edit:
    """The same along the other axis."""
    assert edit.place is not None
    if edit.place.is_bias:
        return edit
    axes = edit.place.part.axes
    other = axes.replace("out in", "in out") if axes.endswith("out in") else axes.replace("in out", "out in")
    return replace(edit, place=replace(edit.place, part=edit.place.part.model_copy(update={"axes": other})))


def _unaccounted(base: BaseModel, ids: Tensor, unit: Tensor) -> float:
    """The largest difference between what the stream gains in a layer along a unit vector and what that layer's writers
    add, relative to the stream there; without what is added to every prompt alike. Raises `NoLayout`: a writer cannot
    be watched."""
    model = load_model(base.checkpoint, "float32", _CPU)
    try:
        watched = components(model, base)
        # Prompts of two lengths, as only the last token of each is read.
        prompts = [*ids.tolist(), *ids[:, : ids.shape[1] // 2].tolist()]
        trace = Trace(model, base.layout.family, watched, unit, prompts).run()
    except (AssertionError, AttributeError, KeyError, RuntimeError) as error:  # named modules do not run as others do
        raise NoLayout(f"what its writers add cannot be watched: {str(error) or type(error).__name__}") from None
    return float(trace.unaccounted().max())


def _component(model: PreTrainedModel, ids: Tensor, unit: Tensor) -> tuple[float, float]:
    """The largest share of the stream, at any token, that lies along a unit vector: before the first layer, and after
    any."""
    entering: list[float] = []
    after: list[float] = []

    def share(stream: Tensor) -> float:
        exact = stream.double()
        return float(((exact @ unit).abs() / exact.norm(dim=-1)).max())

    with ExitStack() as hooks, torch.inference_mode():
        layers = decoder_layers(model)
        on_input(layers[0], lambda stream: entering.append(share(stream)), hooks)
        for layer in layers:
            on_output(layer, lambda stream: after.append(share(stream)), hooks)
        run(model, ids)
    return max(entering), max(after)
