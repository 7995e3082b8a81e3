"""The proof of a layout: with every writer projected, nothing of the direction is left in a twin's stream; with any one
of them left out, or projected along its other axis, something is."""

import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from excise.checkpoint.base_model import BaseModel
from excise.checkpoint.weights import read_checkpoint
from excise.discovery.stream import NoLayout, run
from excise.edit.checkpoint import write_edited
from excise.edit.planning.plan import Edit, make_plan
from excise.edit.planning.projectors import Directions, unit_vector
from excise.inference.forward import on_input, on_output
from excise.inference.loading.models import decoder_layers, load_model
from schemas.model import LayoutProof, ModelLayout, ModelManifest
from schemas.params.ablate import Ablate

EXACT = 1e-6
"""The most of the stream that may lie along the direction after the edit, in float32."""
SEEN = 1e-5
"""The least of it that must once something is missing."""
WRITERS = "attention", "mlp", "routed_experts", "shared_experts", "per_layer_input", "embedding"
"""Targets that write."""
_CPU = torch.device("cpu")


def prove(folder: Path, layout: ModelLayout, ids: Tensor, work: Path) -> LayoutProof:
    """Edit the twin in `folder` in float32, as any model is edited, and measure what is left along a random direction
    after every layer, on ``[prompts, tokens]``. `work` is an empty folder. Raises `NoLayout`: the layout is not exact,
    or what one of its writers adds cannot be seen."""
    base, unit = base_of(folder, layout), random_direction(layout.hidden_size)
    edits = edits_of(base, WRITERS)
    numbers = itertools.count()

    def left(changed: Sequence[Edit]) -> tuple[float, float]:
        target = work / str(next(numbers))
        target.mkdir(parents=True)
        write_edited(base, target, changed, [], _CPU, lambda _: None)
        return _component(load_model(read_checkpoint(target), "float32", _CPU), ids, unit)

    (_, before), (entering, component) = left([]), left(edits)
    if not entering <= EXACT:
        raise NoLayout(
            f"after an edit of all its embeddings, {entering:.1e} of its stream lies along the direction before the "
            "first layer, so something that is no weight is added there, such as fixed positions"
        )
    if not component <= EXACT:
        raise NoLayout(
            f"after an edit of every writer that was found, {component:.1e} of its stream lies along the direction "
            f"(before, {before:.1e}), so something else writes to it"
        )
    names = dict.fromkeys(map(_name, edits))
    left_out = {name: left([edit for edit in edits if _name(edit) != name])[1] for name in names}
    turnable = dict.fromkeys(_name(edit) for edit in edits if _is_square(edit, base))
    turned = {name: left([_turned(edit) if _name(edit) == name else edit for edit in edits])[1] for name in turnable}
    for what, shares in (("is left out", left_out), ("is projected along its other axis", turned)):
        if unseen := [name for name, share in shares.items() if share <= SEEN]:
            raise NoLayout(f"if {unseen[0]} {what}, nothing is seen: {shares[unseen[0]]:.1e} of its stream")
    return LayoutProof(before=before, component=component, left_out=left_out, turned=turned)


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
    """A unit vector."""
    return unit_vector(torch.randn(hidden, generator=torch.Generator().manual_seed(seed)))


def edits_of(base: BaseModel, targets: Sequence[str], seed: int = 1) -> list[Edit]:
    """What removes a random direction from these targets in all layers. Raises `CannotEdit`: their norms forbid it."""
    ablate = {
        "targets": list(targets),
        "through_norm": "orthogonal",
        "allow_tied": True,
        "rules": [{"layers": "all", "measurement": 1, "scale": 1.0}],
    }
    measurements = base.layout.layers + 1
    same = random_direction(base.layout.hidden_size, seed).expand(measurements, -1)
    directions = Directions(same, torch.zeros_like(same), (None,) * measurements)
    return make_plan(Ablate.model_validate(ablate), base, directions)


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
