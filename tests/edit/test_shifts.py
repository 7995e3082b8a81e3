"""What is added to routers' biases: to the last bit, in the right tensors, or an error that says why not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from excise.checkpoint.base_model import BaseModel
from excise.checkpoint.weights import Tensor
from excise.edit.checkpoint import write_edited
from excise.edit.planning.shifts import Shift, add, make_shifts, summary
from excise.plumbing.errors import StageError
from schemas.edit import BiasShift
from schemas.model import RouterBias
from schemas.params.ablate import Ablate
from tests.edit.test_plan import EXPERTS, Shapes, base_model, glm, layout, llama, tensors
from tests.edit.test_projection import raw, rounded, threads
from tests.families import base_of

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ODDS = {layer: torch.tensor([layer + 0.7, -0.3, 0.0], dtype=torch.float64) for layer in (1, 2, 3)}
BIAS = "mlp.gate.e_score_correction_bias"


def with_biases() -> Shapes:
    return glm() | {f"model.layers.{layer}.{BIAS}": (EXPERTS,) for layer in (1, 2, 3)}


def shifts(
    *layers: Any, strength: float | None = 0.5, shapes: Shapes | None = None, model_type: str = "glm4_moe"
) -> list[Shift]:
    ablate = Ablate.model_validate(
        {
            "router_bias": None if strength is None else {"strength": strength},
            "rules": [{"layers": each, "measurement": 2} for each in layers],
        }
    )
    return make_shifts(ablate, base_model(with_biases() if shapes is None else shapes, layout(model_type)), ODDS)


def refused(*layers: Any, **given: Any) -> str:
    with pytest.raises(StageError) as caught:
        shifts(*layers, **given)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_each_router_of_the_layers_that_any_rule_names_is_moved_once() -> None:
    found = shifts(3, "0-1", 3)
    assert [(shift.layer, shift.tensor) for shift in found] == [
        (1, f"model.layers.1.{BIAS}"),
        (3, f"model.layers.3.{BIAS}"),
    ]
    assert [shift.layer for shift in shifts("all")] == [1, 2, 3]


def test_what_is_added_is_minus_strength_times_the_log_odds_of_the_layer() -> None:
    for shift in shifts("all", strength=0.3):
        assert shift.added.tolist() == [-0.3 * odds for odds in ODDS[shift.layer].tolist()]


def test_a_shift_says_what_it_does() -> None:
    (shift,) = shifts(2)
    assert shift.record() == BiasShift(
        tensor=f"model.layers.2.{BIAS}",
        file="model.safetensors",
        layer=2,
        selects_only=True,
        added=[-1.35, 0.15, 0.0],
    )
    assert not np.signbit(shift.record().added[2])


def test_null_and_strength_zero_move_nothing() -> None:
    assert shifts("all", strength=None) == shifts("all", strength=0) == []
    assert shifts("all", strength=None, shapes=llama(), model_type="llama") == []


@pytest.mark.parametrize("strength", [0.5, 0.0])
def test_a_model_without_routed_experts_is_an_error_that_says_so(strength: float) -> None:
    line = refused("all", strength=strength, shapes=llama(), model_type="llama")
    assert line.startswith("params.yaml: ablate.router_bias: ") and "no routed experts in this llama model" in line


def test_layers_without_routed_experts_are_an_error_only_where_there_are_no_others() -> None:
    assert "no routed experts" in refused(0)
    assert [shift.layer for shift in shifts(0, 1)] == [1]


def test_a_router_without_a_bias_is_an_error_that_names_the_layer_also_where_others_have_one() -> None:
    shapes = {name: shape for name, shape in with_biases().items() if name != f"model.layers.2.{BIAS}"}
    line = refused("all", shapes=shapes)
    assert line.startswith("params.yaml: ablate.router_bias: ") and "layer 2 of this glm4_moe model has no bias" in line
    assert [shift.layer for shift in shifts(1, 3, shapes=shapes)] == [1, 3]


def test_a_bias_that_is_not_one_number_an_expert_is_an_error_that_names_it() -> None:
    name = f"model.layers.1.{BIAS}"
    line = refused(1, shapes=with_biases() | {name: (EXPERTS, 2)})
    assert name in line and f"{EXPERTS} experts" in line


def test_a_layer_that_the_model_does_not_have_is_named_with_its_key() -> None:
    assert refused(1, 4).startswith("params.yaml: ablate.rules.1.layers: there is no layer 4")


def test_the_summary_counts_what_is_moved() -> None:
    given = tensors(with_biases())
    (row,) = summary(shifts("all"), given)
    assert (row.role, row.tensors, row.layers, row.parameters) == ("router_bias", 3, [1, 2, 3], 3 * EXPERTS)
    assert summary([], given) == []


# What follows is about bytes: one small checkpoint, made by hand.


def numbers(seed: int, count: int, size: float) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(scale=size, size=count)


def oracle(bias: torch.Tensor, added: NDArray[np.float64]) -> torch.Tensor:
    """b + a in float64, then rounded."""
    return rounded(bias.double().numpy() + added, bias.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_a_bias_is_the_oracle_s_to_the_last_bit_on_any_number_of_threads(dtype: torch.dtype, size: float) -> None:
    bias, added = torch.from_numpy(numbers(1, 70_001, 1.0)).to(dtype), numbers(2, 70_001, size)
    expected = raw(oracle(bias, added))
    for count in (1, 2, 5):
        moved = bias.clone()
        with threads(count):
            add(moved, torch.from_numpy(added))
        assert raw(moved) == expected


def by_hand(folder: Path, bias: torch.Tensor) -> BaseModel:
    folder.mkdir()
    save_file({"a": torch.ones(3, 3), "router": bias, "z": torch.ones(5)}, folder / "model.safetensors")
    return base_of(folder, layout("llama"))


def write(base: BaseModel, target: Path, added: NDArray[np.float64]) -> dict[str, torch.Tensor]:
    target.mkdir()
    place: Tensor = base.tensors["router"]
    bias = RouterBias(weight="router", selects_only=True)
    shift = Shift("router", place.file, 0, bias, torch.from_numpy(added))
    write_edited(base, target, [], [shift], torch.device("cpu"), lambda _: None)
    return load_file(target / "model.safetensors")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bias_in_the_file_is_the_oracle_s_and_every_other_byte_the_base_s(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    bias, added = torch.from_numpy(numbers(3, 16, 1.0)).to(dtype), numbers(4, 16, 0.5)
    base = by_hand(tmp_path / "base", bias)
    found = write(base, tmp_path / "edited", added)
    assert raw(found["router"]) == raw(oracle(bias, added)) != raw(bias)
    old, new = ((folder / "model.safetensors").read_bytes() for folder in (tmp_path / "base", tmp_path / "edited"))
    place = base.tensors["router"]
    assert (new[: place.start], new[place.stop :]) == (old[: place.start], old[place.stop :])


def test_a_strength_that_leaves_the_stored_type_is_told_as_that(tmp_path: Path) -> None:
    base = by_hand(tmp_path / "base", torch.zeros(4, dtype=torch.float16))
    with pytest.raises(StageError, match=r"model\.safetensors: router exceeds the range of float16 at this strength"):
        write(base, tmp_path / "edited", np.full(4, 1e6))


def test_a_bias_that_is_no_float_is_refused_by_name(tmp_path: Path) -> None:
    base = by_hand(tmp_path / "base", torch.zeros(4, dtype=torch.int32))
    with pytest.raises(StageError, match="router is stored as I32, which is not a float type"):
        write(base, tmp_path / "edited", np.ones(4))
