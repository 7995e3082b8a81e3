"""Every family: its layout accounts for each tensor, its writers are all of its writers, and simulation is the edit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from schemas.artifacts import ModelManifest
from schemas.layout import Layout, Norm, Reader, Writer, layouts
from schemas.params import Ablate
from stages.base.manifest import read_config
from stages.base.stage import StageError
from stages.base.weights import Checkpoint, read_checkpoint
from stages.edit.checkpoint import read_vector, write_edited
from stages.edit.directions import Measured
from stages.edit.pairing import make_pairs
from stages.edit.plan import Edit, make_plan
from stages.edit.projection import Pair, unit_vector
from stages.edit.simulation import simulated
from tests.families import EXPERTS, FAMILIES, HIDDEN, VOCABULARY, forward, layers, load, make

WRITERS = ["attention", "mlp", "routed_experts", "shared_experts", "per_layer_input", "embedding"]
READERS = ["attention_inputs", "mlp_inputs", "expert_inputs", "router"]
LAYERS = 4
CPU = torch.device("cpu")


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MEASURED = Measured(
    unit=torch.stack([unit_vector(row) for row in numbers(1, LAYERS + 1, HIDDEN)]),
    harmless_mean=numbers(2, LAYERS + 1, HIDDEN),
)
CENTRED = Measured(
    unit=torch.stack([unit_vector(row - row.mean()) for row in MEASURED.unit]), harmless_mean=MEASURED.harmless_mean
)
PROMPTS = torch.randint(0, VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(3))


class Family:
    """One family's tiny model on disk, loaded once for all tests of it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.model: PreTrainedModel = make(name, folder)
        self.logits = forward(self.model, PROMPTS)
        self.checkpoint: Checkpoint = read_checkpoint(folder)
        self.config = read_config(folder)
        self.manifest = ModelManifest(
            source="folder",
            model_type=self.config["model_type"],
            dtype="float32",
            layers=self.config["num_hidden_layers"],
            hidden_size=self.config["hidden_size"],
            files=[],
        )

    def plan(self, ablate: Ablate) -> list[Edit]:
        return make_plan(ablate, self.manifest, self.config, self.checkpoint.tensors, [None] * (LAYERS + 1))

    def pairs(self, ablate: Ablate, plan: list[Edit], measured: Measured = MEASURED) -> list[Pair]:
        return make_pairs(plan, ablate, measured, lambda name: read_vector(self.checkpoint, name))

    def write(self, ablate: Ablate, target: Path, measured: Measured = MEASURED) -> PreTrainedModel:
        """The model after the edit, by way of the disk."""
        plan = self.plan(ablate)
        keep = ablate.method == "preserve_column_norms"
        write_edited(self.checkpoint, target, plan, self.pairs(ablate, plan, measured), keep, {}, CPU, lambda _: None)
        return load(self.name, target)

    def has(self, target: str) -> bool:
        return target == "embedding" or any(
            edit.role == target for edit in self.plan(rules(targets=[*WRITERS, *READERS], measurement=2))
        )


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp(request.param))


def rules(method: str = "project", through_norm: str = "orthogonal", **rule: Any) -> Ablate:
    return Ablate.model_validate(
        {
            "method": method,
            "through_norm": through_norm,
            "allow_tied": True,
            "rules": [{"layers": "all", "measurement": 2, **rule}],
        }
    )


def stream_component(model: PreTrainedModel, direction: Tensor) -> float:
    """The largest share of the stream, after any layer and at any token, that lies along a direction."""
    shares: list[float] = []

    def look(_module: object, _args: object, output: Any) -> None:
        stream = (output[0] if isinstance(output, tuple) else output).double()
        shares.append(float(((stream @ direction).abs() / stream.norm(dim=-1)).max()))

    hooks = [layer.register_forward_hook(look) for layer in layers(model)]
    forward(model, PROMPTS)
    for hook in hooks:
        hook.remove()
    assert len(shares) == LAYERS
    return max(shares)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("through_norm", ["orthogonal", "oblique"])
def test_nothing_writes_the_direction_once_all_writers_are_projected(
    family: Family, through_norm: str, tmp_path: Path
) -> None:
    assert stream_component(family.model, MEASURED.unit[2]) > 1e-2
    edited = family.write(rules(targets=WRITERS, through_norm=through_norm), tmp_path)
    assert stream_component(edited, MEASURED.unit[2]) <= 1e-6


@pytest.mark.parametrize("target", [*WRITERS, *READERS])
def test_simulation_is_the_edit(family: Family, target: str, tmp_path: Path) -> None:
    if not family.has(target):
        with pytest.raises(StageError, match="have none of"):
            family.plan(rules(targets=[target]))
        return
    ablate = rules(targets=[target], scale=1.3)
    edited = forward(family.write(ablate, tmp_path), PROMPTS)
    plan = family.plan(ablate)
    with simulated(family.model, plan, family.pairs(ablate, plan)):
        assert relative(forward(family.model, PROMPTS), edited) <= 1e-4
    assert relative(edited, family.logits) > 1e-4
    assert torch.equal(forward(family.model, PROMPTS), family.logits)


@pytest.mark.parametrize("writers", [True, False], ids=["writers", "readers"])
def test_simulation_is_the_edit_of_single_experts(family: Family, writers: bool, tmp_path: Path) -> None:
    target = "routed_experts" if writers else "expert_inputs"
    if not family.has("routed_experts"):
        return
    ablate = rules(targets=[target], experts=[0, 2])
    edited = forward(family.write(ablate, tmp_path), PROMPTS)
    plan = family.plan(ablate)
    with simulated(family.model, plan, family.pairs(ablate, plan)):
        assert relative(forward(family.model, PROMPTS), edited) <= 1e-4
    assert relative(edited, family.logits) > 1e-5
    assert torch.equal(forward(family.model, PROMPTS), family.logits)


def test_simulation_keeps_column_norms_as_the_edit_does(family: Family, tmp_path: Path) -> None:
    ablate = rules(method="preserve_column_norms", targets=WRITERS[:-1])
    edited = forward(family.write(ablate, tmp_path), PROMPTS)
    plan = family.plan(ablate)
    with simulated(family.model, plan, family.pairs(ablate, plan), keep_column_norms=True):
        assert relative(forward(family.model, PROMPTS), edited) <= 1e-4
    assert relative(edited, forward(family.write(rules(targets=WRITERS[:-1]), tmp_path), PROMPTS)) > 1e-4


def test_blinding_readers_to_a_direction_that_nobody_writes_changes_nothing(family: Family, tmp_path: Path) -> None:
    blinded = rules(targets=[*WRITERS, *READERS], through_norm="oblique")
    without, pairs = nobody_writes(family, tmp_path)
    with simulated(family.model, family.plan(blinded), pairs):
        assert relative(forward(family.model, PROMPTS), without) <= 1e-4


def test_the_orthogonal_reader_rule_hits_other_features(family: Family, tmp_path: Path) -> None:
    """The rule that others use, along γ ⊙ r: there it matters, where this project's changes nothing."""
    plan = family.plan(rules(targets=[*WRITERS, *READERS], through_norm="oblique"))
    without, pairs = nobody_writes(family, tmp_path)
    orthogonal = [
        Pair(*[unit_vector(pair.right)] * 2)
        if edit.place is not None and isinstance(edit.place.part, Reader) and edit.place.norms
        else pair
        for edit, pair in zip(plan, pairs, strict=True)
    ]
    with simulated(family.model, plan, orthogonal):
        changed = relative(forward(family.model, PROMPTS), without)
    if any(edit.place is not None and isinstance(edit.place.part, Reader) and edit.place.norms for edit in plan):
        assert changed > 1e-2
    else:  # OLMo 2's readers have no norm: there the two rules are one
        assert changed <= 1e-4


def nobody_writes(family: Family, folder: Path) -> tuple[Tensor, list[Pair]]:
    """The logits once all writers are projected, and the pairs of a plan of all writers and readers.

    The direction's mean is zero: a LayerNorm takes the mean away, so that what it lets a reader see of another
    direction is not what the stream holds of it.
    """
    written = rules(targets=WRITERS, through_norm="oblique")
    everything = rules(targets=[*WRITERS, *READERS], through_norm="oblique")
    without = forward(family.write(written, folder, CENTRED), PROMPTS)
    return without, family.pairs(everything, family.plan(everything), CENTRED)


WAYS_TO_BREAK = {
    "a writer is left out": lambda layout: [
        _without_writer(layout, sublayer, number) for sublayer, number in _writers(layout)
    ],
    "a norm is left out": lambda layout: [_with_norms(layout, ())] if _has_norms(layout) else [],
    "axes are the wrong way round": lambda layout: [_turned(layout)],
}


def _writers(layout: Layout) -> list[tuple[str, int]]:
    return [
        (sublayer, number)
        for sublayer, variants in layout.sublayers.items()
        for number, variant in enumerate(variants)
        if variant.writers
    ]


def _changed(layout: Layout, change: Callable[[str, int, Writer], list[Writer]]) -> Layout:
    return layout.model_copy(
        update={
            "sublayers": {
                sublayer: tuple(
                    variant.model_copy(
                        update={
                            "writers": tuple(new for old in variant.writers for new in change(sublayer, number, old))
                        }
                    )
                    for number, variant in enumerate(variants)
                )
                for sublayer, variants in layout.sublayers.items()
            }
        }
    )


def _without_writer(layout: Layout, sublayer: str, number: int) -> Layout:
    """As if the first writer of one variant were any other tensor."""
    lost = layout.sublayers[sublayer][number].writers[0]
    variant_others = tuple(lost.weight.replace("{expert}", str(expert)) for expert in range(EXPERTS))
    changed = _changed(
        layout, lambda at, which, writer: [] if (at, which, writer) == (sublayer, number, lost) else [writer]
    )
    biases = () if lost.bias is None else (lost.bias,)
    return changed.model_copy(update={"others": (*changed.others, *variant_others, *biases)})


def _has_norms(layout: Layout) -> bool:
    return any(
        writer.norms for variants in layout.sublayers.values() for variant in variants for writer in variant.writers
    )


def _with_norms(layout: Layout, norms: tuple[Norm, ...]) -> Layout:
    names = {
        norm.weight
        for variants in layout.sublayers.values()
        for variant in variants
        for writer in variant.writers
        for norm in writer.norms
    }
    changed = _changed(layout, lambda _at, _which, writer: [writer.model_copy(update={"norms": norms})])
    return changed.model_copy(update={"others": (*changed.others, *names)})


def _turned(layout: Layout) -> Layout:
    other = {"out in": "in out", "in out": "out in", "expert out in": "expert in out", "expert in out": "expert out in"}
    return _changed(layout, lambda _at, _which, writer: [writer.model_copy(update={"axes": other[writer.axes]})])


@pytest.mark.parametrize("way", WAYS_TO_BREAK)
def test_a_broken_layout_is_seen(family: Family, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = layouts()[family.manifest.model_type]
    used = {edit.place.part for edit in family.plan(rules(targets=WRITERS)) if edit.place is not None}
    for number, broken in enumerate(WAYS_TO_BREAK[way](layout)):
        monkeypatch.setattr("stages.edit.plan.layouts", lambda broken=broken: {family.manifest.model_type: broken})
        left = {writer for variants in broken.sublayers.values() for variant in variants for writer in variant.writers}
        if used <= left:
            continue  # it broke a form that this model does not have
        target = tmp_path / str(number)
        target.mkdir()
        try:
            edited = family.write(rules(targets=WRITERS), target)
        except StageError:
            continue
        assert stream_component(edited, MEASURED.unit[2]) > 1e-4
