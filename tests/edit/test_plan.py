"""The plan: rules resolved against checkpoints that are nothing but names and shapes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from excise.checkpoint.base_model import BaseModel
from excise.checkpoint.weights import SINGLE, Checkpoint, Tensor
from excise.discovery.proof import manifest_of
from excise.edit.planning.layout import sort_by_layer, spare_layers
from excise.edit.planning.plan import CannotEdit, Edit, make_plan
from excise.edit.planning.projectors import Directions
from excise.edit.planning.shifts import summary
from excise.plumbing.errors import StageError
from schemas.edit import Projection
from schemas.families import layouts
from schemas.model import ModelLayout
from schemas.params.ablate import Ablate

HIDDEN, LAYERS, EXPERTS = 8, 4, 3

Shapes = dict[str, tuple[int, ...]]


def dense(number: int) -> Shapes:
    layer = f"model.layers.{number}."
    return {
        f"{layer}input_layernorm.weight": (HIDDEN,),
        f"{layer}post_attention_layernorm.weight": (HIDDEN,),
        f"{layer}self_attn.q_proj.weight": (16, HIDDEN),
        f"{layer}self_attn.k_proj.weight": (8, HIDDEN),
        f"{layer}self_attn.v_proj.weight": (8, HIDDEN),
        f"{layer}self_attn.o_proj.weight": (HIDDEN, 16),
        f"{layer}mlp.gate_proj.weight": (24, HIDDEN),
        f"{layer}mlp.up_proj.weight": (24, HIDDEN),
        f"{layer}mlp.down_proj.weight": (HIDDEN, 24),
    }


def sparse(number: int) -> Shapes:
    layer = f"model.layers.{number}."
    shapes = {name: shape for name, shape in dense(number).items() if ".mlp." not in name}
    shapes[f"{layer}mlp.gate.weight"] = (EXPERTS, HIDDEN)
    shapes[f"{layer}mlp.shared_experts.gate_proj.weight"] = (12, HIDDEN)
    shapes[f"{layer}mlp.shared_experts.up_proj.weight"] = (12, HIDDEN)
    shapes[f"{layer}mlp.shared_experts.down_proj.weight"] = (HIDDEN, 12)
    for expert in range(EXPERTS):
        shapes[f"{layer}mlp.experts.{expert}.gate_proj.weight"] = (12, HIDDEN)
        shapes[f"{layer}mlp.experts.{expert}.up_proj.weight"] = (12, HIDDEN)
        shapes[f"{layer}mlp.experts.{expert}.down_proj.weight"] = (HIDDEN, 12)
    return shapes


def glm() -> Shapes:
    """One dense layer, three with experts, and what lies outside the layers."""
    return {
        "model.embed_tokens.weight": (32, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (32, HIDDEN),
        **dense(0),
        **sparse(1),
        **sparse(2),
        **sparse(3),
    }


def llama() -> Shapes:
    return {name: shape for number in range(LAYERS) for name, shape in dense(number).items()}


def tensors(shapes: Shapes) -> dict[str, Tensor]:
    return {name: Tensor("model.safetensors", "F32", shape, 0, 0) for name, shape in shapes.items()}


class NamesAndShapes(BaseModel):
    """A base model without files: norms of ones."""

    def vector(self, name: str) -> torch.Tensor:
        return torch.ones(self.tensors[name].shape)


def base_model(shapes: Shapes, layout: ModelLayout) -> BaseModel:
    checkpoint = Checkpoint(Path("nowhere"), tensors(shapes), (SINGLE,), (), ())
    return NamesAndShapes(manifest_of(layout), layout, checkpoint)


def directions(reasons: Mapping[int, str] | None = None, measurements: int = LAYERS + 1) -> Directions:
    rows = torch.randn(measurements, HIDDEN, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Directions(rows, torch.ones_like(rows), tuple((reasons or {}).get(n) for n in range(measurements)))


def layout(model_type: str, **facts: Any) -> ModelLayout:
    given = {"layers": LAYERS, "hidden_size": HIDDEN, "experts": EXPERTS, "residual_multiplier": 1.0, "tied": False}
    return ModelLayout.model_validate({"model_type": model_type, "family": layouts()[model_type], **given, **facts})


def plan(
    *rules: dict[str, Any],
    shapes: Shapes | None = None,
    model_type: str = "glm4_moe",
    targets: list[str] | None = None,
    reasons: Mapping[int, str] | None = None,
    **facts: Any,
) -> list[Edit]:
    ablate = Ablate.model_validate({"rules": list(rules), **({"targets": targets} if targets else {})})
    given = shapes if shapes is not None else glm() if model_type == "glm4_moe" else llama()
    return make_plan(ablate, base_model(given, layout(model_type, **facts)), directions(reasons))


def records(edits: list[Edit]) -> list[Projection]:
    return [edit.record(None) for edit in edits]


def refused(*rules: dict[str, Any], **given: Any) -> str:
    """The error of a plan that cannot be made, which is one line."""
    with pytest.raises(StageError) as caught:
        plan(*rules, **given)
    assert str(caught.value).isprintable()
    return str(caught.value)


ONE = {"layers": 1, "measurement": 2}


def test_every_writer_of_the_layers_named_is_planned_and_no_other_tensor() -> None:
    assert [projection.tensor for projection in plan({"layers": "0-1", "measurement": 2})] == [
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.1.self_attn.o_proj.weight",
        "model.layers.1.mlp.experts.0.down_proj.weight",
        "model.layers.1.mlp.experts.1.down_proj.weight",
        "model.layers.1.mlp.experts.2.down_proj.weight",
        "model.layers.1.mlp.shared_experts.down_proj.weight",
    ]


def test_a_projection_says_what_it_does() -> None:
    (edit,) = plan({"layers": 0, "measurement": 3, "scale": 0.5, "targets": ["mlp"]})
    assert records([edit]) == [
        Projection(
            tensor="model.layers.0.mlp.down_proj.weight",
            file="model.safetensors",
            role="mlp",
            layer=0,
            measurement=3,
            scale=0.5,
            experts=None,
            norms=[],
        )
    ]


def test_all_means_every_layer_in_use() -> None:
    planned = plan({"layers": "all", "measurement": 2}, model_type="llama")
    assert {projection.layer for projection in planned} == set(range(LAYERS))
    assert len(planned) == 2 * LAYERS


def test_biases_of_writers_are_planned_with_them() -> None:
    shapes = llama() | {"model.layers.1.self_attn.o_proj.bias": (HIDDEN,), "model.layers.1.mlp.down_proj.bias": (8,)}
    planned = plan(ONE, shapes=shapes, model_type="llama")
    assert [(projection.tensor.removeprefix("model.layers.1."), projection.role) for projection in planned] == [
        ("self_attn.o_proj.bias", "attention"),
        ("self_attn.o_proj.weight", "attention"),
        ("mlp.down_proj.bias", "mlp"),
        ("mlp.down_proj.weight", "mlp"),
    ]


def test_the_later_rule_wins_where_two_name_a_tensor() -> None:
    planned = plan(
        {"layers": "0-2", "measurement": 2},
        {"layers": 1, "measurement": 3, "scale": 0.25, "targets": ["attention"]},
    )
    assert {
        (projection.measurement, projection.scale)
        for projection in planned
        if projection.layer == 1 and projection.role == "attention"
    } == {(3, 0.25)}
    assert {
        (projection.measurement, projection.scale)
        for projection in planned
        if projection.layer != 1 or projection.role != "attention"
    } == {(2, 1.0)}
    assert len(planned) == len({projection.tensor for projection in planned})


def test_scale_zero_leaves_a_tensor_out_also_where_an_earlier_rule_named_it() -> None:
    planned = plan(
        {"layers": "0-2", "measurement": 2},
        {"layers": 1, "measurement": 2, "scale": 0},
    )
    assert {projection.layer for projection in planned} == {0, 2}


def test_a_rule_narrows_the_targets_for_itself_alone() -> None:
    planned = plan(
        {"layers": 1, "measurement": 2, "targets": ["shared_experts"]},
        {"layers": 2, "measurement": 2},
        targets=["attention"],
    )
    assert [(projection.layer, projection.role) for projection in planned] == [(1, "shared_experts"), (2, "attention")]


def test_targets_that_a_rule_finds_nowhere_are_an_error_that_says_what_is_there() -> None:
    line = refused({"layers": 0, "measurement": 2, "targets": ["routed_experts", "shared_experts"]})
    assert line.startswith("params.yaml: ablate.rules.0: ")
    assert "routed_experts, shared_experts" in line and line.endswith(
        "attention, attention_inputs, embedding, mlp, mlp_inputs"
    )


def test_targets_that_one_of_several_layers_lacks_are_no_error() -> None:
    planned = plan({"layers": "0-1", "measurement": 2, "targets": ["routed_experts"]})
    assert {projection.layer for projection in planned} == {1}


@pytest.mark.parametrize(
    ("rule", "key", "told"),
    [
        ({"layers": "2-4", "measurement": 2}, "ablate.rules.1.layers", ("no layer 4", "layers 0-3")),
        ({"layers": 1, "measurement": 5}, "ablate.rules.1.measurement", ("no measurement 5", "measurements 0-4")),
        (
            {"layers": 1, "measurement": 0},
            "ablate.rules.1.measurement",
            ("measurement 0 has no direction", "the same activations"),
        ),
    ],
)
def test_what_the_model_does_not_have_is_named_with_its_key_and_range(
    rule: dict[str, Any], key: str, told: tuple[str, ...]
) -> None:
    line = refused(ONE, rule, reasons={0: "the same activations"})
    assert line.startswith(f"params.yaml: {key}: ")
    assert all(words in line for words in told)


def test_a_measurement_without_direction_is_no_error_where_no_rule_uses_it() -> None:
    assert records(plan(ONE, reasons={0: "the same activations"})) == records(plan(ONE))


@pytest.mark.parametrize(
    "lost",
    [
        "model.layers.1.mlp.experts.1.down_proj.weight",
        "model.layers.1.mlp.experts.2.down_proj.weight",
        "model.layers.1.mlp.shared_experts.down_proj.weight",
    ],
)
def test_a_missing_writer_is_named(lost: str) -> None:
    shapes = glm()
    del shapes[lost]
    assert lost in refused(ONE, shapes=shapes)


@pytest.mark.parametrize(
    "lost", ["model.layers.1.self_attn.o_proj.weight", "model.layers.0.mlp.down_proj.weight"], ids=["o", "down"]
)
def test_a_sublayer_without_any_writer_is_an_error_that_names_it(lost: str) -> None:
    shapes = glm()
    del shapes[lost]
    assert lost in refused({"layers": "0-1", "measurement": 2}, shapes=shapes)


def test_a_missing_writer_is_an_error_also_where_the_targets_leave_it_out() -> None:
    shapes = glm()
    del shapes["model.layers.1.mlp.experts.1.down_proj.weight"]
    assert "experts.1.down_proj" in refused(ONE, shapes=shapes, targets=["attention"])


def test_what_is_missing_in_a_layer_that_no_rule_names_is_no_error() -> None:
    shapes = glm()
    del shapes["model.layers.3.mlp.experts.1.down_proj.weight"]
    assert records(plan(ONE, shapes=shapes)) == records(plan(ONE))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.self_attn.extra_proj.weight",
        "model.layers.1.self_attn.o_proj.weight_scale_inv",
        "model.layers.1.mlp.experts.1.down_proj.weight.copy",
        "model.layers.1.mlp.experts.01.down_proj.weight",
        "model.layers.1.mlp.experts.down_proj.weight",
    ],
)
def test_a_tensor_that_the_layout_does_not_name_is_an_error_that_names_it(name: str) -> None:
    assert name in refused(ONE, shapes=glm() | {name: (HIDDEN, 8)})


def test_an_expert_beyond_those_of_the_config_is_an_error_that_names_it() -> None:
    name = f"model.layers.1.mlp.experts.{EXPERTS}.down_proj.weight"
    assert name in refused(ONE, shapes=glm() | {name: (HIDDEN, 12)})


def test_a_config_that_does_not_count_the_experts_is_an_error() -> None:
    assert "n_routed_experts" in refused(ONE, experts=None)


def test_two_forms_of_a_feed_forward_are_an_error_that_names_the_tensors() -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    line = refused(ONE, shapes=glm() | {name: (HIDDEN, 24)})
    assert "layer 1" in line and name in line


@pytest.mark.parametrize("shape", [(16, HIDDEN), (HIDDEN,), (2, HIDDEN, 16), ()], ids=str)
def test_a_weight_of_a_shape_that_cannot_write_to_the_stream_is_an_error_that_names_it(shape: tuple[int, ...]) -> None:
    name = "model.layers.1.self_attn.o_proj.weight"
    line = refused(ONE, shapes=glm() | {name: shape})
    assert name in line and str(list(shape)) in line and str(HIDDEN) in line


@pytest.mark.parametrize("shape", [(16,), (HIDDEN, 1)], ids=str)
def test_a_bias_of_a_shape_that_cannot_write_to_the_stream_is_an_error_that_names_it(shape: tuple[int, ...]) -> None:
    name = "model.layers.1.self_attn.o_proj.bias"
    assert name in refused(ONE, shapes=llama() | {name: shape}, model_type="llama")


def test_layers_beyond_those_in_use_are_left_alone_whatever_they_hold() -> None:
    spare = {f"model.layers.{LAYERS}.eh_proj.weight": (8, 16), f"model.layers.{LAYERS}.self_attn.o_proj.weight": (8, 8)}
    found, expected = (plan({"layers": "all", "measurement": 2}, shapes=glm() | more) for more in (spare, {}))
    assert records(found) == records(expected)


def test_names_that_merely_hold_a_layer_s_name_are_left_alone() -> None:
    strangers: Shapes = {
        "mtp.layers.0.self_attn.o_proj.weight": (8, 16),
        "vision.model.layers.0.self_attn.o_proj.weight": (8, 16),
        "xmodel.layers.0.mlp.down_proj.weight": (8, 16),
        "model.layers.0x.mlp.down_proj.weight": (8, 16),
        "model.layers.01.mlp.down_proj.weight": (8, 16),
        "modelxlayers.0.mlp.down_proj.weight": (8, 16),
        "model.layers.": (8, 16),
    }
    found, expected = (plan({"layers": "all", "measurement": 2}, shapes=glm() | more) for more in (strangers, {}))
    assert records(found) == records(expected)


def test_tensors_are_sorted_by_layer_number_and_not_by_name() -> None:
    layers = sort_by_layer(
        layout("llama", layers=11),
        tensors({name: shape for number in range(11) for name, shape in dense(number).items()}),
    )
    assert [layer["mlp.down_proj.weight"] for layer in layers] == [
        f"model.layers.{number}.mlp.down_proj.weight" for number in range(11)
    ]


def test_readers_are_planned_where_they_are_targets() -> None:
    planned = plan({"layers": 1, "measurement": 2}, targets=["router", "expert_inputs", "attention_inputs"])
    assert {edit.role for edit in planned} == {"router", "expert_inputs", "attention_inputs"}
    assert {edit.stream_axis for edit in planned} == {1}
    assert len(planned) == 1 + 2 * EXPERTS + 2 + 3
    assert all(edit.place is not None and len(edit.place.norms) == 1 for edit in planned)


def test_a_rule_may_name_experts_and_the_later_one_wins_for_them_alone() -> None:
    planned = plan(
        {"layers": 1, "measurement": 2, "targets": ["routed_experts"]},
        {"layers": 1, "measurement": 2, "scale": 0.5, "targets": ["routed_experts"], "experts": [0, 2]},
    )
    assert [edit.scale for edit in planned] == [0.5, 1.0, 0.5]


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (
            {"targets": ["routed_experts"], "experts": [EXPERTS]},
            f"there is no expert {EXPERTS}; there are 0-{EXPERTS - 1}",
        ),
        ({"targets": ["attention", "routed_experts"], "experts": [0]}, "attention has no experts"),
    ],
)
def test_experts_that_are_not_there_are_named(rule: dict[str, Any], told: str) -> None:
    assert told in refused({"layers": 1, "measurement": 2, **rule})


def test_same_is_each_layer_s_own_measurement() -> None:
    planned = plan({"layers": "1-2", "measurement": "same", "targets": ["attention"]})
    assert [(edit.layer, edit.measurement) for edit in planned] == [(1, 1), (2, 2)]


def test_a_fraction_needs_both_of_its_neighbours() -> None:
    assert {edit.measurement for edit in plan({"layers": 1, "measurement": 2.5})} == {2.5}
    assert "measurement 3 has no direction" in refused({"layers": 1, "measurement": 2.5}, reasons={3: "none"})
    assert "no measurement 4.5" in refused({"layers": 1, "measurement": 4.5})


def test_a_tied_embedding_is_edited_only_where_that_is_said() -> None:
    rule = {"layers": 1, "measurement": 2, "targets": ["embedding"]}
    (edit,) = plan(rule)
    assert (edit.tensor, edit.layer, edit.stream_axis) == ("model.embed_tokens.weight", None, 1)
    tied = {name: shape for name, shape in glm().items() if name != "lm_head.weight"}
    assert "allow_tied: true" in refused(rule, shapes=tied, tied=True)
    assert "allow_tied: true" in refused(rule, tied=True)
    both = make_plan(
        Ablate.model_validate({"allow_tied": True, "rules": [rule]}),
        base_model(glm(), layout("glm4_moe", tied=True)),
        directions(),
    )
    assert [edit.tensor for edit in both] == ["lm_head.weight", "model.embed_tokens.weight"]


def test_the_embedding_has_no_measurement_of_its_own() -> None:
    rule = {"layers": 1, "measurement": "same", "targets": ["embedding"]}
    assert "`same` means the layer" in refused(rule)


def test_a_reader_that_is_missing_is_named() -> None:
    lost = "model.layers.1.self_attn.k_proj.weight"
    assert lost in refused(ONE, shapes={name: shape for name, shape in glm().items() if name != lost})


def test_spare_layers_are_named() -> None:
    names = [*glm(), f"model.layers.{LAYERS}.eh_proj.weight", f"model.layers.{LAYERS + 1}.self_attn.o_proj.weight"]
    found = spare_layers(layout("glm4_moe"), names)
    assert found == [f"model.layers.{LAYERS}.", f"model.layers.{LAYERS + 1}."]
    assert spare_layers(layout("qwen3_next"), ["mtp.layers.0.mlp.gate.weight"]) == ["mtp."]


def test_the_summary_counts_what_is_touched() -> None:
    given = tensors(glm())
    (row,) = summary(plan({"layers": "1-2", "measurement": 2, "targets": ["routed_experts"], "experts": [1]}), given)
    assert (row.role, row.tensors, row.layers, row.parameters) == ("routed_experts", 2, [1, 2], 2 * HIDDEN * 12)


def test_experts_of_qwen3_5_may_lie_in_the_file_fused_or_one_by_one() -> None:
    layer = "model.language_model.layers.0."
    common: Shapes = {
        **{f"{layer}{norm}.weight": (HIDDEN,) for norm in ("input_layernorm", "post_attention_layernorm")},
        **{f"{layer}self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "o")},
        f"{layer}mlp.gate.weight": (EXPERTS, HIDDEN),
        f"{layer}mlp.shared_expert_gate.weight": (1, HIDDEN),
        **{f"{layer}mlp.shared_expert.{name}_proj.weight": (HIDDEN, HIDDEN) for name in ("gate", "up", "down")},
    }
    fused: Shapes = {
        f"{layer}mlp.experts.down_proj": (EXPERTS, HIDDEN, 12),
        f"{layer}mlp.experts.gate_up_proj": (EXPERTS, 24, HIDDEN),
    }
    single: Shapes = {
        f"{layer}mlp.experts.{expert}.{name}_proj.weight": (HIDDEN, 12) if name == "down" else (12, HIDDEN)
        for expert in range(EXPERTS)
        for name in ("gate", "up", "down")
    }
    for experts, count in ((fused, 1), (single, EXPERTS)):
        planned = plan(
            {"layers": 0, "measurement": 2, "targets": ["routed_experts"]},
            shapes=common | experts,
            model_type="qwen3_5_moe_text",
        )
        assert len(planned) == count
        assert {edit.stream_axis for edit in planned} == {0}
    assert planned[0].experts is None


def test_edits_that_see_one_direction_through_the_same_norms_share_a_projector() -> None:
    readers = plan({"layers": "1-2", "measurement": 2}, targets=["attention", "attention_inputs"])
    by_layer = {layer: {edit.projector for edit in readers if edit.layer == layer} for layer in (1, 2)}
    assert [len(found) for found in by_layer.values()] == [2, 2]  # writers behind no norm, readers behind one
    for edit in readers:
        assert edit.projector.left.shape == edit.projector.right.shape == (HIDDEN, 1)


def test_a_tensor_that_cannot_be_edited_so_is_named_with_the_reason() -> None:
    ablate = Ablate.model_validate({"orthogonalize": "source", "rules": [ONE]})
    along = Directions(directions().unit, directions().unit * 3, (None,) * (LAYERS + 1))
    with pytest.raises(CannotEdit, match=r"^model\.layers\.1\..* cannot be edited: .* measurement 2 is parallel to"):
        make_plan(ablate, base_model(glm(), layout("glm4_moe")), along)


@pytest.mark.parametrize("method", ["project", "preserve_column_norms"])
def test_column_norms_are_kept_of_what_hidden_units_write(method: str) -> None:
    shapes = llama() | {"model.layers.1.self_attn.o_proj.bias": (HIDDEN,)}
    targets = ["attention", "attention_inputs", "embedding"]
    ablate = Ablate.model_validate({"method": method, "targets": targets, "rules": [ONE]})
    outside = {"model.embed_tokens.weight": (32, HIDDEN), "lm_head.weight": (32, HIDDEN)}
    found = make_plan(ablate, base_model(shapes | outside, layout("llama")), directions())
    kept = {edit.tensor for edit in found if edit.keep_column_norms}
    assert kept == ({"model.layers.1.self_attn.o_proj.weight"} if method == "preserve_column_norms" else set())
    assert len(found) == 6
