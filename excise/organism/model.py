"""The organism's tiny architectures, with norms that are not all ones, its word-level tokenizer and chat template."""

from itertools import chain
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from excise.organism.massive import behind_writers, reserve
from excise.organism.world import World, vocabulary

PAD, UNKNOWN, END = "<pad>", "<unk>", "<eos>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL = (PAD, UNKNOWN, END, SYSTEM, USER, ASSISTANT)
"""The special tokens; a token's id is its index here, and the world's words follow."""

MAX_LENGTH = 128
"""Tokens that the organism reads at most: a prompt of this world has up to 14, with its answer 20."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('roles are system, user and assistant, not ' + message['role']) -}}"
    "{%- endif -%}"
    "{{- '<|' + message['role'] + '|> ' + message['content'] + ' ' -}}"
    "{%- if message['role'] == 'assistant' -%}{{- '<eos> ' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def make_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """The tokenizer of a world: one token per lower-cased word or punctuation mark; none at the beginning of a text."""
    ids = {word: i for i, word in enumerate([*SPECIAL, *vocabulary(world)])}
    words = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_LENGTH,
    )


SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "initializer_range": 0.06,
}
"""Settings that all architectures share: small enough to train in a minute, deep enough that layers differ."""

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "glm4_moe": {
        "intermediate_size": 256,
        "moe_intermediate_size": 64,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "use_qk_norm": True,
    },
    "llama": {"intermediate_size": 384},
    "gemma2": {
        "intermediate_size": 256,
        "query_pre_attn_scalar": SHAPE["head_dim"],
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
    "gemma3_text": {"intermediate_size": 256, "query_pre_attn_scalar": SHAPE["head_dim"], "sliding_window": MAX_LENGTH},
}
"""Further settings of each architecture, by ``model_type``."""

BEHIND_WRITERS = {"gemma2": 0.7, "gemma3_text": 1.1}
"""Log-standard-deviation of the initial gains of norms behind writers, for architectures that have such norms."""
MASSIVE = {"gemma3_text"}
"""Architectures into which a massive activation of the first token is built."""

_ATTENTION = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")
_DENSE = ("mlp.gate_proj.weight", "mlp.up_proj.weight")
_SHARED = ("mlp.shared_experts.gate_proj.weight", "mlp.shared_experts.up_proj.weight")
_EXPERTS = ("mlp.gate.weight", "mlp.experts.gate_up_proj", *_SHARED)

READERS: dict[str, dict[str, tuple[str, ...]]] = {
    "glm4_moe": {"input_layernorm": _ATTENTION, "post_attention_layernorm": _DENSE + _EXPERTS},
    "llama": {"input_layernorm": _ATTENTION, "post_attention_layernorm": _DENSE},
    "gemma2": {"input_layernorm": _ATTENTION, "pre_feedforward_layernorm": _DENSE},
    "gemma3_text": {"input_layernorm": _ATTENTION, "pre_feedforward_layernorm": _DENSE},
}
"""The tensors that read each norm of a layer, where the layer has them; their last axis is the stream's."""

OFFSETS = {"gemma2": 1, "gemma3_text": 1}
"""Added to a norm's weight before it multiplies; 0 for other architectures."""


def make_model(architecture: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """An untrained float32 model, from torch's global random numbers. Raises `ValueError`: unknown architecture."""
    if architecture not in ARCHITECTURES:
        raise ValueError(f"organism architecture {architecture!r} is unknown; known are {', '.join(ARCHITECTURES)}")
    config = AutoConfig.for_model(
        architecture,
        **SHAPE,
        **ARCHITECTURES[architecture],
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
        dtype="float32",
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.generation_config.do_sample = False
    if architecture in BEHIND_WRITERS:
        # As uneven as trained ones; an organism's few steps would hardly change them.
        for norm in chain.from_iterable(map(behind_writers, model.model.layers)):
            norm.weight.data.normal_(std=BEHIND_WRITERS[architecture]).exp_().sub_(1)
    if architecture in MASSIVE:
        reserve(model)
    return model


@torch.no_grad()
def vary_norms(model: PreTrainedModel, seed: int, sigma: float = 0.5) -> None:
    """Multiply weights of the stream's norms by log-normal numbers (log-standard-deviation ``sigma``) and divide what
    reads them. The model's function stays, but an edit that forgets norm weights fails as it would on a real model."""
    numbers, architecture = torch.Generator().manual_seed(seed), model.config.model_type
    offset = OFFSETS.get(architecture, 0)

    def vary(norm: nn.Parameter, readers: list[nn.Parameter]) -> None:
        factor = torch.empty_like(norm).normal_(std=sigma, generator=numbers).exp()
        norm.copy_((norm + offset) * factor - offset)
        for reader in readers:
            reader.div_(factor)

    for layer in model.model.layers:
        tensors = dict(layer.named_parameters())
        for norm, readers in READERS[architecture].items():
            vary(tensors[f"{norm}.weight"], [tensors[reader] for reader in readers if reader in tensors])
    vary(model.model.norm.weight, [model.lm_head.weight])
