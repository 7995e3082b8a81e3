"""Parts of a model are loaded as transformers loads them whole, and what is missing is named."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from excise.checkpoint.weights import read_checkpoint
from excise.inference.layers import LayeredModel, _Fuse
from excise.inference.loading.models import load_model
from excise.plumbing.errors import StageError
from tests.families import make

CPU = torch.device("cpu")
FILE = "model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("glm")
    make("glm4_moe", folder)
    return folder


@pytest.fixture
def glm(made: Path, tmp_path: Path) -> Path:
    """A model of two kinds of layers, to be spoiled."""
    return Path(shutil.copytree(made, tmp_path / "model"))


def change(folder: Path, how: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of the file."""
    tensors = load_file(folder / FILE)
    how(tensors)
    save_file(tensors, folder / FILE, {"format": "pt"})


def loaded_whole(folder: Path) -> dict[str, Tensor]:
    return load_model(read_checkpoint(folder), "float32", CPU).state_dict()


def in_parts(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every parameter of the decoder, loaded part by part."""
    layered = LayeredModel(read_checkpoint(folder), "float32", CPU)
    for part in range(layered.frame + 1):
        with layered.loaded(part):
            yield from ((name, tensor) for name, tensor in layered.model.state_dict().items() if not tensor.is_meta)


def test_all_parts_together_are_the_decoder(glm: Path) -> None:
    whole = loaded_whole(glm)
    parts = dict(in_parts(glm))
    assert whole.keys() - parts.keys() == {"lm_head.weight"}
    assert all(torch.equal(tensor, whole[name]) and tensor.dtype == whole[name].dtype for name, tensor in parts.items())


def test_a_part_has_no_tensor_of_another(glm: Path) -> None:
    names = [name for name, _ in in_parts(glm)]
    assert len(names) == len(set(names))


def test_spare_layers_and_tensors_of_other_towers_are_not_read(glm: Path) -> None:
    """Were they, their shapes would be wrong."""
    before = dict(in_parts(glm))
    change(
        glm,
        lambda tensors: tensors.update(
            {
                name: torch.zeros(3)
                for name in ("model.layers.4.self_attn.q_proj.weight", "vision.layers.0.self_attn.q_proj.weight")
            }
        ),
    )
    after = dict(in_parts(glm))
    assert before.keys() == after.keys() and all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        ("model.layers.2.input_layernorm.weight", "model.layers.2.input_layernorm.weight"),
        ("model.layers.1.self_attn.k_proj.bias", "model.layers.1.self_attn.k_proj.bias"),
        ("model.layers.3.mlp.gate.e_score_correction_bias", "model.layers.3.mlp.gate.e_score_correction_bias"),
        ("model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("model.norm.weight", "model.norm.weight"),
    ],
)
def test_a_missing_tensor_is_named_and_never_made_up(glm: Path, gone: str, named: str) -> None:
    change(glm, lambda tensors: tensors.pop(gone))
    with pytest.raises(StageError) as caught:
        list(in_parts(glm))
    assert str(caught.value).startswith(f"{glm} does not hold {named}, which transformers would fill with random")


def test_a_missing_expert_is_no_smaller_layer(glm: Path) -> None:
    change(glm, lambda tensors: tensors.pop("model.layers.2.mlp.experts.3.down_proj.weight"))
    with pytest.raises(StageError, match=r"model\.layers\.2\.mlp\.experts\.down_proj has the shape \[3, 64, 64\]"):
        list(in_parts(glm))


def test_a_part_of_an_expert_missing_is_an_error_that_names_what_it_belongs_to(glm: Path) -> None:
    change(glm, lambda tensors: tensors.pop("model.layers.2.mlp.experts.3.up_proj.weight"))
    with pytest.raises(
        StageError,
        match=r"layers\.2\.mlp\.experts\.gate_up_proj could not be loaded: the experts of \S+ are not all alike; ",
    ):
        list(in_parts(glm))


def test_a_tensor_of_another_shape_is_an_error_of_one_line(glm: Path) -> None:
    change(glm, lambda tensors: tensors.update({"model.layers.1.self_attn.o_proj.weight": torch.zeros(64, 32)}))
    with pytest.raises(StageError) as caught:
        list(in_parts(glm))
    assert str(caught.value) == (
        f"{glm}: model.layers.1.self_attn.o_proj.weight has the shape [64, 32], where its config.json says [64, 64]; "
        "name a complete copy of the model"
    )


def test_nothing_is_left_of_a_part_that_could_not_be_loaded(glm: Path) -> None:
    change(glm, lambda tensors: tensors.pop("model.layers.2.input_layernorm.weight"))
    layered = LayeredModel(read_checkpoint(glm), "float32", CPU)
    with pytest.raises(StageError), layered.loaded(2):
        pass
    assert all(tensor.is_meta for tensor in layered.model.state_dict().values())


@pytest.mark.parametrize("name", ["gemma2", "smollm3"])
def test_embeddings_that_the_file_calls_the_output_head_are_found(name: str, tmp_path: Path) -> None:
    make(name, tmp_path)
    expected = loaded_whole(tmp_path)["model.embed_tokens.weight"]
    change(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors.pop("model.embed_tokens.weight")}))
    assert torch.equal(dict(in_parts(tmp_path))["model.embed_tokens.weight"], expected)


def test_a_folder_without_a_model_that_transformers_knows_is_an_error(glm: Path) -> None:
    (glm / "config.json").write_text('{"model_type": "no such"}')
    with pytest.raises(StageError, match="could not be loaded"):
        LayeredModel(read_checkpoint(glm), "float32", CPU)


def test_reading_ahead_ends_with_its_block(glm: Path) -> None:
    layered = LayeredModel(read_checkpoint(glm), "float32", CPU)
    before = set(threading.enumerate())
    with layered.reading_ahead() as read:
        for part in range(layered.frame + 1):
            read(part)
    assert not set(threading.enumerate()) - before


def test_a_file_that_goes_away_is_the_loader_s_error_and_not_the_reader_s(glm: Path) -> None:
    layered = LayeredModel(read_checkpoint(glm), "float32", CPU)
    (glm / FILE).unlink()
    with layered.reading_ahead() as read:
        read(0)
    with pytest.raises(StageError, match="could not be loaded"), layered.loaded(0):
        pass


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    experts=st.integers(1, 5),
    rows=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    columns=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_fusing_without_copies_gives_what_transformers_does(
    experts: int, rows: list[int], columns: int, dtype: torch.dtype
) -> None:
    patterns = [f"experts.*.{number}" for number in range(len(rows))]
    matrices: dict[str, Any] = {
        pattern: [torch.randn(height, columns).to(dtype) for _ in range(experts)]
        for pattern, height in zip(patterns, rows, strict=True)
    }
    expected = torch.cat([torch.stack(each) for each in matrices.values()], dim=1)
    found = _Fuse().convert(dict(matrices), patterns, ["all"])["all"]
    assert torch.equal(found, expected) and found.dtype == expected.dtype


@pytest.mark.parametrize(
    "matrices",
    [
        {"gate": [torch.ones(2, 3)] * 2, "up": [torch.ones(2, 3)]},
        {"gate": [torch.ones(2, 3), torch.ones(1, 3)], "up": [torch.ones(2, 3)] * 2},
    ],
    ids=["one lacks a matrix", "one has a smaller one"],
)
def test_experts_that_are_not_alike_are_not_fused(matrices: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the experts of all are not all alike"):
        _Fuse().convert(matrices, ["gate", "up"], ["all"])
