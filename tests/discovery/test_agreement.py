"""Measured without looking at a name, the layout of a model is the one that its YAML file declares."""

from pathlib import Path

import pytest

from excise.checkpoint.weights import read_checkpoint
from excise.discovery.examination import compare, examine
from excise.discovery.proof import EXACT
from excise.edit.inspection import inspect
from schemas.model import Layout, ModelLayout
from tests.families import FAMILIES, make

FAST = ("gemma4_text_moe", "gpt_oss", "llama4", "qwen2_moe")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in sorted(FAMILIES)]
)
def test_measurement_finds_what_the_layout_declares(name: str, tmp_path: Path) -> None:
    make(name, tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    examined = examine(tmp_path, checkpoint.tensors, checkpoint.files, name)
    assert examined.differences == []
    assert examined.proof.component <= EXACT


def test_a_difference_is_named(tmp_path: Path) -> None:
    make("llama", tmp_path)
    tensors = read_checkpoint(tmp_path).tensors
    layout = inspect(tmp_path, tensors, [], "float32")
    changed = layout.model_dump(mode="json")
    (attention,) = changed["family"]["sublayers"]["attention"]
    attention["writers"][0]["axes"] = "in out"
    attention["readers"][0]["norm"]["weight"] = "post_attention_layernorm.weight"
    other = ModelLayout.model_validate(changed, strict=False)
    assert isinstance(other.family, Layout)
    found = compare(layout, other, tensors)
    assert len(found) == 2 * layout.layers
    assert found[0] == (
        "model.layers.0.self_attn.o_proj.weight: attention, stream on axis 0 by its file, "
        "attention, stream on axis 1 by measurement"
    )
