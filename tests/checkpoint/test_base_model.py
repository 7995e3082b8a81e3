"""Small tensors of the base model, read from its files."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from excise.checkpoint.base_model import BaseModel
from excise.plumbing.errors import StageError
from tests.edit.test_plan import layout
from tests.families import base_of

WEIGHTS = {
    "norm.weight": torch.randn(7).bfloat16(),
    "a.matrix": torch.ones(3, 4),
    "norm.bias": torch.randn(5).double(),
    "count": torch.arange(4),
}


@pytest.fixture
def base(tmp_path: Path) -> BaseModel:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    return base_of(tmp_path, layout("llama"))


def test_a_vector_is_the_one_in_the_file(base: BaseModel) -> None:
    for name in ("norm.weight", "norm.bias"):
        found = base.vector(name)
        assert found.dtype == WEIGHTS[name].dtype and torch.equal(found, WEIGHTS[name])


def test_a_vector_of_another_type_is_refused_by_name(base: BaseModel) -> None:
    with pytest.raises(StageError, match=r"^count is stored as I64, which is not a float type"):
        base.vector("count")


def test_a_file_that_became_shorter_is_said_to(base: BaseModel) -> None:
    path = base.folder / "model.safetensors"
    last = max((name for name in WEIGHTS if name != "count"), key=lambda name: base.tensors[name].stop)
    os.truncate(path, base.tensors[last].stop - 1)
    with pytest.raises(StageError, match="became shorter"):
        base.vector(last)
