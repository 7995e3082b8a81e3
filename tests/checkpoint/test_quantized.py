"""Quantised checkpoints are told apart, by config.json or else by the names of their tensors."""

import pytest

from excise.checkpoint.base_model import quantization


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("fp8", "fp8"),
        ("mxfp4", "MXFP4"),
        ("gptq", "GPTQ"),
        ("awq", "AWQ"),
        ("bitsandbytes", "bitsandbytes"),
        ("new", "new"),
    ],
)
def test_the_config_s_own_word_is_taken(method: str, told: str) -> None:
    assert quantization({"quantization_config": {"quant_method": method}}, []) == told


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("model.layers.0.mlp.down_proj.weight_scale_inv", "fp8"),
        ("model.layers.0.mlp.experts.down_proj_blocks", "MXFP4"),
        ("model.layers.0.mlp.down_proj.qweight", "GPTQ or AWQ"),
        ("model.layers.0.mlp.down_proj.weight.absmax", "bitsandbytes"),
        ("model.layers.0.mlp.down_proj.SCB", "bitsandbytes"),
    ],
)
def test_the_names_of_tensors_tell_too(name: str, told: str) -> None:
    assert quantization({}, ["model.embed_tokens.weight", name]) == told


def test_plain_weights_are_plain() -> None:
    names = ["model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.experts.down_proj_bias", "model.norm.weight"]
    assert quantization({"quantization_config": None}, names) is None
