"""Measured without looking at a name, the layout of a model is the one that its YAML file declares."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from excise.discovery.layout import Found, find_layout
from excise.discovery.measurement import Written
from excise.discovery.stream import NoLayout
from schemas.families import layout_of
from schemas.model import Norm, Reader, Variant, Writer
from tests.families import FAMILIES, HIDDEN, VOCABULARY, layers, randomize

FAST = ("gemma4_text_moe", "gpt_oss", "llama", "qwen2_moe")
AXES = {"out in": (0, 1), "in out": (1, 0), "expert out in": (1, 2), "expert in out": (2, 1)}
"""The stream's axis of a writer and of a reader, by stored axes."""
PROMPTS = torch.randint(0, VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(3))

Part = tuple[int, tuple[tuple[str, int, str], ...], str]
"""Axis, norms by weight, offset and kind, and role."""


def model_of(name: str) -> PreTrainedModel:
    """A random model of a family, in float64, whose attention and experts can be differentiated twice."""
    model = FAMILIES[name]()
    randomize(model, 0)
    for config in (model.config, *(getattr(model.config, part, None) for part in model.config.sub_configs)):
        if config is not None:
            config._experts_implementation = "eager"
    model.set_attn_implementation("eager")
    return model.double().eval()


def norms(*found: Any) -> tuple[tuple[str, int, str], ...]:
    return tuple((norm.weight, norm.offset, norm.kind) for norm in found if norm is not None)


def measured(found: Found) -> tuple[dict[str, Part], dict[str, Part]]:
    """Writers and readers by the names of their parameters."""
    writers: dict[str, Part] = {
        name: (each.axis, norms(*each.chain), role) for name, (each, role) in found.writers.items()
    }
    readers: dict[str, Part] = {
        name: (each.axis, norms(each.gain), role) for name, (each, role) in found.readers.items()
    }
    return writers, readers


def declared(model: PreTrainedModel) -> tuple[dict[str, Part], dict[str, Part]]:
    """The same by the YAML file."""
    writers: dict[str, Part] = {}
    readers: dict[str, Part] = {}
    blocks = layers(model)
    (path,) = (path for path, module in model.named_modules() if module is blocks)
    family = layout_of(model.config.get_text_config().model_type).in_memory()
    for number, block in enumerate(blocks):
        names = {name for name, _ in block.named_parameters()}
        for variants in family.sublayers.values():
            for part, name in parts(variants, names):
                axis = AXES[part.axes][isinstance(part, Reader)]
                through = part.norms if isinstance(part, Writer) else (part.norm,)
                full = [
                    norm and Norm(weight=f"{path}.{number}.{norm.weight}", offset=norm.offset, kind=norm.kind)
                    for norm in through
                ]
                of = (axis, norms(*full), part.role)
                (writers if isinstance(part, Writer) else readers)[f"{path}.{number}.{name}"] = of
                bias = in_memory(part, part.bias, names) if part.bias else None
                if isinstance(part, Writer) and bias is not None:
                    writers[f"{path}.{number}.{bias}"] = (int(part.axes.startswith("expert")), norms(*full), part.role)
    return writers, readers


def parts(variants: tuple[Variant, ...], names: set[str]) -> Iterator[tuple[Writer | Reader, str]]:
    """The parts of the largest variant that a block has whole, with the names of their parameters in memory."""

    def needed(variant: Variant) -> list[Writer | Reader]:
        return [*variant.writers, *(reader for reader in variant.readers if not reader.optional)]

    whole = [variant for variant in variants if all(in_memory(part, part.weight, names) for part in needed(variant))]
    for part in (chosen := max(whole, key=lambda variant: len(needed(variant)))).writers + chosen.readers:
        name = in_memory(part, part.weight, names)
        if name is not None:
            yield part, name


def in_memory(part: Writer | Reader, stored: str, names: set[str]) -> str | None:
    """A tensor's name in memory: experts that the file holds as one tensor may have other names there."""
    fused = "down_proj" if isinstance(part, Writer) else "gate_up_proj"
    ending = f"{fused}_bias" if stored.endswith("bias") else fused
    alternatives = (stored, f"{part.in_memory}.{ending}", f"{part.in_memory}.weight")
    return next((name for name in alternatives if name in names), None)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in sorted(FAMILIES)]
)
def test_measurement_finds_what_the_layout_declares(name: str) -> None:
    model = model_of(name)
    found = find_layout(model, PROMPTS)
    writers, readers = measured(found)
    expected_writers, expected_readers = declared(model)
    assert writers == expected_writers
    assert readers == expected_readers
    embedding = model.get_input_embeddings()
    assert embedding is not None
    (path,) = (path for path, module in model.named_modules() if module is embedding)
    assert found.embeddings == {f"{path}.weight": Written(f"{path}.weight", 1, ())}


def small(model_type: str, **settings: Any) -> nn.Module:
    config = AutoConfig.for_model(model_type, vocab_size=VOCABULARY, **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    randomize(model, 0)
    return model.double().eval()


def test_a_norm_on_the_stream_itself_is_refused() -> None:
    sizes = {"hidden_size": HIDDEN, "intermediate_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4}
    with pytest.raises(NoLayout, match="multiplies the channels"):
        find_layout(small("bert", is_decoder=True, **sizes), PROMPTS)


def test_norms_behind_embeddings_and_embeddings_of_positions_are_found() -> None:
    bloom = find_layout(small("bloom", hidden_size=HIDDEN, n_layer=2, n_head=4), PROMPTS)
    (chain,) = {each.chain for name, each in bloom.embeddings.items() if name.endswith("embeddings.weight")}
    assert norms(*chain) == (("transformer.word_embeddings_layernorm.weight", 0, "layer"),)
    gpt2 = find_layout(small("gpt2", n_embd=HIDDEN, n_layer=2, n_head=4, n_positions=64), PROMPTS)
    assert set(gpt2.embeddings) == {"transformer.wte.weight", "transformer.wpe.weight"}
    assert {each.axis for name, (each, _) in gpt2.writers.items() if name.endswith("weight")} == {1}
