"""A random checkpoint with the tensors of GLM-4.5-Air, at any size.

As the real one: the first layer dense, the others with 128 routed experts and a shared one, a bias by which routers
choose, biases of queries, keys and values, and after the 46 layers in use a further one for multi-token prediction,
which transformers does not load.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from excise.checkpoint.weights import INDEX
from excise.organism.model import make_tokenizer
from excise.organism.world import make_world

HEAD = 128


@dataclass(frozen=True)
class Shape:
    """How large it is."""

    layers: int = 46
    hidden: int = 1536
    heads: int = 12
    experts: int = 128
    expert_size: int = 256
    dense_size: int = 4096
    shard_bytes: int = 1 << 30


def write_checkpoint(folder: Path, shape: Shape, advance: Callable[[int], None] = lambda _: None) -> None:
    """Write weights in shards with their index, config, and the tokenizer of the built-in model.

    Args:
        advance: told the number of bytes written since.
    """
    tokenizer = make_tokenizer(make_world(0))
    config = _config(shape, len(tokenizer))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tokenizer.save_pretrained(folder)

    numbers = torch.Generator().manual_seed(0)
    index: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    for name, sizes in _tensors(shape, len(tokenizer)):
        shard[name] = _random(name, sizes, numbers)
        advance(shard[name].nbytes)
        if sum(tensor.nbytes for tensor in shard.values()) >= shape.shard_bytes:
            _save(folder, shard, index)
            shard = {}
    if shard:
        _save(folder, shard, index)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))


def total_bytes(shape: Shape) -> int:
    """About what the weights take."""
    return sum(2 * torch.Size(sizes).numel() for _, sizes in _tensors(shape, 1000))


def _save(folder: Path, shard: dict[str, torch.Tensor], index: dict[str, str]) -> None:
    name = f"model-{len(set(index.values())) + 1:05}.safetensors"
    save_file(shard, folder / name, {"format": "pt"})
    index.update(dict.fromkeys(shard, name))


def _config(shape: Shape, vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "dtype": "bfloat16",
        "vocab_size": vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.dense_size,
        "moe_intermediate_size": shape.expert_size,
        "num_hidden_layers": shape.layers,
        "num_nextn_predict_layers": 1,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": 2,
        "head_dim": HEAD,
        "attention_bias": True,
        "use_qk_norm": False,
        "partial_rotary_factor": 0.5,
        "first_k_dense_replace": 1,
        "n_routed_experts": shape.experts,
        "n_shared_experts": 1,
        "num_experts_per_tok": min(8, shape.experts),
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 2,
    }


def _tensors(shape: Shape, vocabulary: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (vocabulary, shape.hidden)
    for number in range(shape.layers):
        yield from _layer(f"model.layers.{number}.", shape, dense=number == 0)
    spare = f"model.layers.{shape.layers}."
    yield f"{spare}embed_tokens.weight", (vocabulary, shape.hidden)
    yield f"{spare}enorm.weight", (shape.hidden,)
    yield f"{spare}hnorm.weight", (shape.hidden,)
    yield f"{spare}eh_proj.weight", (shape.hidden, 2 * shape.hidden)
    yield from _layer(spare, shape, dense=False)
    yield f"{spare}shared_head.norm.weight", (shape.hidden,)
    yield f"{spare}shared_head.head.weight", (vocabulary, shape.hidden)
    yield "model.norm.weight", (shape.hidden,)
    yield "lm_head.weight", (vocabulary, shape.hidden)


def _layer(layer: str, shape: Shape, dense: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{layer}input_layernorm.weight", (shape.hidden,)
    yield f"{layer}post_attention_layernorm.weight", (shape.hidden,)
    for name, heads in (("q_proj", shape.heads), ("k_proj", 2), ("v_proj", 2)):
        yield f"{layer}self_attn.{name}.weight", (heads * HEAD, shape.hidden)
        yield f"{layer}self_attn.{name}.bias", (heads * HEAD,)
    yield f"{layer}self_attn.o_proj.weight", (shape.hidden, shape.heads * HEAD)
    if dense:
        yield from _mlp(f"{layer}mlp.", shape.hidden, shape.dense_size)
        return
    yield f"{layer}mlp.gate.weight", (shape.experts, shape.hidden)
    yield f"{layer}mlp.gate.e_score_correction_bias", (shape.experts,)
    yield from _mlp(f"{layer}mlp.shared_experts.", shape.hidden, shape.expert_size)
    for expert in range(shape.experts):
        yield from _mlp(f"{layer}mlp.experts.{expert}.", shape.hidden, shape.expert_size)


def _mlp(prefix: str, hidden: int, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}gate_proj.weight", (size, hidden)
    yield f"{prefix}up_proj.weight", (size, hidden)
    yield f"{prefix}down_proj.weight", (hidden, size)


def _random(name: str, sizes: tuple[int, ...], numbers: torch.Generator) -> torch.Tensor:
    if name.endswith("e_score_correction_bias"):
        return torch.empty(sizes).normal_(std=0.01, generator=numbers)
    made = torch.empty(sizes, dtype=torch.bfloat16)
    return made.fill_(1) if name.endswith("norm.weight") else made.normal_(std=0.02, generator=numbers)
