"""What cannot be a layout is refused, and what no YAML file declares is found."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from excise.discovery.layout import find_layout
from excise.discovery.stream import NoLayout
from tests.families import HIDDEN, VOCABULARY, randomize

PROMPTS = torch.randint(0, VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(3))


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
    assert [(gain.weight, gain.kind) for gain in chain] == [("transformer.word_embeddings_layernorm.weight", "layer")]
    gpt2 = find_layout(small("gpt2", n_embd=HIDDEN, n_layer=2, n_head=4, n_positions=64), PROMPTS)
    assert set(gpt2.embeddings) == {"transformer.wte.weight", "transformer.wpe.weight"}
    assert {each.axis for name, (each, _) in gpt2.writers.items() if name.endswith("weight")} == {1}
