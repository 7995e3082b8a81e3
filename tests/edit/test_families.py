"""Every family: its layout accounts for each tensor, its writers are all of its writers, and simulation is the edit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from excise.checkpoint.base_model import BaseModel
from excise.checkpoint.weights import SINGLE
from excise.edit.checkpoint import Remainder, write_edited
from excise.edit.planning.plan import Edit, make_plan
from excise.edit.planning.projectors import Directions, unit_vector
from excise.edit.planning.shifts import Shift, make_shifts, odds_by_layer
from excise.inference.passes import Passes
from excise.plumbing.errors import StageError
from excise.residual.activations import collect_activations
from excise.residual.experts import count_use, routed_experts
from excise.trials.simulation import simulated
from schemas.model import Layout, ModelLayout, Reader, Variant, Writer
from schemas.params.ablate import Ablate, RouterBias
from tests.families import (
    EXPERTS,
    FAMILIES,
    HIDDEN,
    ROUTED,
    VOCABULARY,
    base_of,
    forward,
    layers,
    load,
    make,
)
from tests.subjects import rules
from tests.wrong_readers import orthogonal_readers, raw_readers

WRITERS = ["attention", "mlp", "routed_experts", "shared_experts", "per_layer_input", "embedding"]
READERS = ["attention_inputs", "mlp_inputs", "expert_inputs", "router"]
LAYERS = 4
CPU = torch.device("cpu")


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


DIRECTIONS = Directions(
    unit=torch.stack([unit_vector(row) for row in numbers(1, LAYERS + 1, HIDDEN)]),
    harmless_mean=numbers(2, LAYERS + 1, HIDDEN),
    reasons=(None,) * (LAYERS + 1),
)
CENTRED = replace(DIRECTIONS, unit=torch.stack([unit_vector(row - row.mean()) for row in DIRECTIONS.unit]))
PROMPTS = torch.randint(0, VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(3))
# Sides that end in tokens of their own, so that routers tell them apart.
HARMFUL = [[*range(start, start + 5), 7] for start in range(10, 30)]
HARMLESS = [[*range(start, start + 5), 8] for start in range(10, 34)]
BIASED = ("deepseek_v3", "glm4_moe", "glm4_moe_lite", "gpt_oss", "lfm2_moe", "minimax_m2")
"""Families whose routers have a bias."""


class Family:
    """One family's tiny model on disk, loaded once for all tests of it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.model: PreTrainedModel = make(name, folder)
        self.logits = forward(self.model, PROMPTS)
        self.base: BaseModel = base_of(folder)

    @property
    def layout(self) -> ModelLayout:
        return self.base.layout

    def plan(self, ablate: Ablate, directions: Directions = DIRECTIONS) -> list[Edit]:
        return make_plan(ablate, self.base, directions)

    def used(self, prompts: list[list[int]]) -> dict[int, Tensor]:
        """By layer, which experts each prompt's last token is given to."""
        experts = routed_experts(self.model, self.layout.family)
        return collect_activations(Passes(self.model), experts, prompts, -1, 64, lambda _: None).used

    def shifts(self, ablate: Ablate) -> list[Shift]:
        use = count_use(self.used([*HARMFUL, *HARMLESS]), len(HARMFUL), len(HARMLESS))
        return make_shifts(ablate, self.base, odds_by_layer(use))

    def write(
        self, ablate: Ablate, target: Path, directions: Directions = DIRECTIONS, shifts: list[Shift] | None = None
    ) -> PreTrainedModel:
        """The model after the edit, by way of the disk."""
        write_edited(self.base, target, self.plan(ablate, directions), shifts or [], CPU, lambda _: None)
        return load(self.name, target)

    def has(self, target: str) -> bool:
        return target == "embedding" or any(
            edit.role == target for edit in self.plan(rules(targets=[*WRITERS, *READERS], measurement=2))
        )


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp(request.param))


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
    assert stream_component(family.model, DIRECTIONS.unit[2]) > 1e-2
    edited = family.write(rules(targets=WRITERS, through_norm=through_norm), tmp_path)
    assert stream_component(edited, DIRECTIONS.unit[2]) <= 1e-6


@pytest.mark.parametrize(
    ("dtype", "least", "most"),
    [(torch.float32, 0.0, 1e-6), (torch.bfloat16, 1e-4, 2e-3), (torch.float16, 1e-5, 2e-4)],
    ids=["float32", "bfloat16", "float16"],
)
@pytest.mark.parametrize("name", ["llama", "gemma2", "glm4_moe"])
def test_what_rounding_leaves_of_the_direction_is_what_docs_edit_says(
    name: str, dtype: torch.dtype, least: float, most: float, tmp_path: Path
) -> None:
    """Of weights that are stored in a type; the model computes in float32."""
    base, edited = tmp_path / "base", tmp_path / "edited"
    base.mkdir()
    edited.mkdir()
    family = Family(name, base)
    save_file({key: each.to(dtype) for key, each in load_file(base / SINGLE).items()}, base / SINGLE, {"format": "pt"})
    family.base = base_of(base)
    left = stream_component(family.write(rules(targets=WRITERS), edited), DIRECTIONS.unit[2])
    print(f"{name} in {dtype}: {left:.1e} of the stream")
    assert least <= left <= most


@pytest.mark.parametrize("target", [*WRITERS, *READERS])
def test_simulation_is_the_edit(family: Family, target: str, tmp_path: Path) -> None:
    if not family.has(target):
        with pytest.raises(StageError, match="have none of"):
            family.plan(rules(targets=[target]))
        return
    ablate = rules(targets=[target], scale=1.3)
    edited = forward(family.write(ablate, tmp_path), PROMPTS)
    with simulated(family.model, family.plan(ablate)):
        assert relative(forward(family.model, PROMPTS), edited) <= 1e-4
    assert relative(edited, family.logits) > 1e-4
    assert torch.equal(forward(family.model, PROMPTS), family.logits)


@pytest.mark.parametrize("family", ROUTED, indirect=True)
@pytest.mark.parametrize("writers", [True, False], ids=["writers", "readers"])
def test_simulation_is_the_edit_of_single_experts(family: Family, writers: bool, tmp_path: Path) -> None:
    target = "routed_experts" if writers else "expert_inputs"
    ablate = rules(targets=[target], experts=[0, 2])
    edited = forward(family.write(ablate, tmp_path), PROMPTS)
    with simulated(family.model, family.plan(ablate)):
        assert relative(forward(family.model, PROMPTS), edited) <= 1e-4
    assert relative(edited, family.logits) > 1e-5
    assert torch.equal(forward(family.model, PROMPTS), family.logits)


def test_simulation_keeps_column_norms_as_the_edit_does(family: Family, tmp_path: Path) -> None:
    ablate = rules(method="preserve_column_norms", targets=[*WRITERS, *READERS])
    edited = forward(family.write(ablate, tmp_path), PROMPTS)
    with simulated(family.model, family.plan(ablate)):
        assert relative(forward(family.model, PROMPTS), edited) <= 1e-4
    plain = forward(family.write(rules(targets=[*WRITERS, *READERS]), tmp_path), PROMPTS)
    assert relative(edited, plain) > 1e-4


def moved(strength: float) -> Ablate:
    """Routers' biases, and nothing else."""
    return rules(scale=0.0).model_copy(update={"router_bias": RouterBias(strength=strength)})


def test_simulation_is_the_edit_of_router_biases(family: Family, tmp_path: Path) -> None:
    if family.name not in BIASED:
        with pytest.raises(StageError, match=r"^params\.yaml: ablate\.router_bias: .* no (bias|routed experts)"):
            family.shifts(moved(1.0))
        return
    shifts = family.shifts(moved(0.3))
    edited = forward(family.write(moved(0.3), tmp_path, shifts=shifts), PROMPTS)
    with simulated(family.model, [], shifts):
        assert relative(forward(family.model, PROMPTS), edited) <= 1e-4
    assert relative(edited, family.logits) > 1e-4
    assert torch.equal(forward(family.model, PROMPTS), family.logits)


@pytest.mark.parametrize("family", sorted(BIASED), indirect=True)
def test_a_strong_router_bias_leaves_the_experts_that_harmful_prompts_favour_unused(family: Family) -> None:
    shifts = family.shifts(moved(20.0))
    before = family.used(HARMFUL)
    with simulated(family.model, [], shifts):
        after = family.used(HARMFUL)
    assert len(shifts) == len(before) > 0
    for shift in shifts:
        favoured = int(shift.added.argmin())
        assert before[shift.layer][:, favoured].any()
        assert not after[shift.layer][:, favoured].any()
        assert after[shift.layer].sum() == before[shift.layer].sum()


@pytest.mark.parametrize("family", sorted(BIASED), indirect=True)
def test_a_layout_says_whether_a_router_bias_touches_weights_too(family: Family) -> None:
    """So little changes no choice: what changes then are weights."""
    shifts = family.shifts(moved(1e-5))
    with simulated(family.model, [], shifts):
        change = relative(forward(family.model, PROMPTS), family.logits)
    assert all(shift.bias.selects_only == (change < 1e-6) for shift in shifts)


def test_routed_experts_in_memory_are_those_of_the_file(family: Family) -> None:
    experts = routed_experts(family.model, family.layout.family)
    assert bool(experts) == (family.name in ROUTED)
    planned = family.plan(rules(targets=["attention", "routed_experts"]))
    assert experts.keys() == {edit.layer for edit in planned if edit.role == "routed_experts"}


def test_blinding_readers_to_a_direction_that_nobody_writes_changes_nothing(family: Family, tmp_path: Path) -> None:
    blinded = rules(targets=[*WRITERS, *READERS], through_norm="oblique")
    without = nobody_writes(family, tmp_path)
    with simulated(family.model, family.plan(blinded, CENTRED)):
        assert relative(forward(family.model, PROMPTS), without) <= 1e-4


def test_orthogonal_reader_rules_hit_other_features(family: Family, tmp_path: Path) -> None:
    """The rules that others use, along γ ⊙ r and along r: there they matter, where this project's changes nothing."""
    ablate = rules(targets=[*WRITERS, *READERS], through_norm="oblique")
    plan, without = family.plan(ablate, CENTRED), nobody_writes(family, tmp_path)
    behind_norms = any(
        edit.place is not None and isinstance(edit.place.part, Reader) and edit.place.norms for edit in plan
    )
    for wrong in (orthogonal_readers(plan), raw_readers(plan, ablate, CENTRED)):
        with simulated(family.model, wrong):
            changed = relative(forward(family.model, PROMPTS), without)
        if behind_norms:
            assert changed > 1e-2
        else:  # OLMo 2's readers have no norm: there the rules are one
            assert changed <= 1e-4


def nobody_writes(family: Family, folder: Path) -> Tensor:
    """The logits once all writers are projected.

    The direction's mean is zero: a LayerNorm takes the mean away, so that what it lets a reader see of another
    direction is not what the stream holds of it.
    """
    return forward(family.write(rules(targets=WRITERS, through_norm="oblique"), folder, CENTRED), PROMPTS)


def changed_layout(layout: Layout, change: Callable[[Writer], Writer | None], *others: str) -> Layout:
    """The layout with every writer changed, or left out where that gives None, and these names among its others."""

    def changed(variant: Variant) -> Variant:
        return variant.model_copy(update={"writers": tuple(filter(None, map(change, variant.writers)))})

    sublayers = {name: tuple(map(changed, variants)) for name, variants in layout.sublayers.items()}
    return layout.model_copy(update={"sublayers": sublayers, "others": (*layout.others, *others)})


def norms_of(writer: Writer) -> list[str]:
    return [norm.weight for norm in writer.norms if norm.weight is not None]


def without_writer(layout: Layout, lost: Writer) -> Layout:
    """As if this writer were a tensor like any other, in every form that its sublayer takes."""
    names = [lost.weight.replace("{expert}", str(expert)) for expert in range(EXPERTS)]
    biases = [] if lost.bias is None else [lost.bias]
    return changed_layout(
        layout, lambda writer: None if writer.weight == lost.weight else writer, *names, *biases, *norms_of(lost)
    )


def without_norm(layout: Layout, lost: Writer, number: int) -> Layout:
    """As if one of the norms behind this writer were not behind it."""
    norms = tuple(norm for place, norm in enumerate(lost.norms) if place != number)
    return changed_layout(
        layout, lambda writer: writer.model_copy(update={"norms": norms}) if writer == lost else writer, *norms_of(lost)
    )


def turned(layout: Layout, lost: Writer) -> Layout:
    """As if this writer's axes were the other way round."""
    other = {"out in": "in out", "in out": "out in", "expert out in": "expert in out", "expert in out": "expert out in"}

    def turn(writer: Writer) -> Writer:
        return writer.model_copy(update={"axes": other[writer.axes]}) if writer.weight == lost.weight else writer

    return changed_layout(layout, turn)


def test_a_broken_layout_is_seen(family: Family, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each writer in turn is left out, turned round, or loses one of its norms."""
    base, whole = family.base, family.layout
    layout = whole.family
    used = {place.part for edit in family.plan(rules(targets=WRITERS)) if (place := edit.place) and not place.is_bias}
    broken: list[Layout] = []
    for writer in used:
        assert isinstance(writer, Writer)
        broken += [without_writer(layout, writer), turned(layout, writer)]
        broken += [without_norm(layout, writer, number) for number in range(len(writer.norms))]
    assert len(broken) >= 4
    for number, other in enumerate(broken):
        monkeypatch.setattr(family, "base", replace(base, layout=whole.model_copy(update={"family": other})))
        ablate = rules(targets=WRITERS)
        plan = family.plan(ablate)
        target = tmp_path / str(number)
        target.mkdir()
        assert stream_component(family.write(ablate, target), DIRECTIONS.unit[2]) > 1e-4, plan[0]


def test_what_ignoring_norms_leaves_is_measured_on_the_weights_of_each_tensor(family: Family, tmp_path: Path) -> None:
    ablate, remainder = rules(targets=WRITERS, through_norm="ignore", scale=0.75), Remainder()
    plan = family.plan(ablate)
    write_edited(family.base, tmp_path, plan, [], CPU, lambda _: None, remainder=remainder)
    for edit in plan:
        if not edit.norms:
            assert remainder.of(edit.tensor) is None
            continue
        assert edit.place is not None and isinstance(edit.place.part, Writer)
        seen = DIRECTIONS.unit[2]
        for norm, name in zip(edit.place.part.norms, edit.norms, strict=True):
            seen = seen * (family.base.vector(name).double() + norm.offset)
        before, after = (load_file(folder / edit.file)[edit.tensor].double() for folder in (family.folder, tmp_path))
        if edit.stream_axis == 0 and before.ndim > 1:
            before, after = before.mT, after.mT
        assert remainder.of(edit.tensor) == pytest.approx(
            float((after @ seen).norm() / (before @ seen).norm()), rel=1e-9
        )
    shares = [share for edit in plan if (share := remainder.of(edit.tensor)) is not None]
    assert remainder.range() == ((min(shares), max(shares)) if shares else None)
