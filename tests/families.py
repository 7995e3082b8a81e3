"""A tiny random model of each family, to save, edit and load.

Wherever the architecture allows, every tensor that writes to the stream is square, so that an edit on the wrong axis
raises nothing and only the values can tell.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.utils import logging

from excise.checkpoint.base_model import BaseModel
from excise.checkpoint.weights import read_checkpoint
from excise.discovery import proof
from excise.edit.inspection import inspect, resolve_tied
from schemas.model import ModelLayout

VOCABULARY = 96
HIDDEN = 64
EXPERTS = 4

Builder = Callable[[], PreTrainedModel]
"""Makes a model, its weights as transformers starts them."""

NO_TOKENS: dict[str, Any] = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
"""Special tokens, whose defaults lie outside the vocabulary."""

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    **NO_TOKENS,
}
"""Settings of every text model."""

MOE: dict[str, Any] = {"moe_intermediate_size": HIDDEN, "num_experts_per_tok": 2}
"""Settings of models whose experts have a size of their own."""

SHARED_AND_ROUTED: dict[str, Any] = {**MOE, "n_routed_experts": EXPERTS, "n_shared_experts": 1}
"""The same for GLM and DeepSeek."""

LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "head_dim": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "q_lora_rank": HIDDEN,
    "kv_lora_rank": HIDDEN - 8,
}
"""Multi-head latent attention: `head_dim` is that of its rotary part."""

GATED_DELTA: dict[str, Any] = {
    "num_experts": EXPERTS,
    "shared_expert_intermediate_size": HIDDEN,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    **MOE,
}
"""Three layers of linear attention, then one of full attention."""

GEMMA4: dict[str, Any] = {
    "global_head_dim": 16,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "hidden_size_per_layer_input": 0,
}
"""Gemma 4 with heads of one size."""

GEMMA4_SHARING: dict[str, Any] = {
    **GEMMA4,
    "hidden_size_per_layer_input": HIDDEN,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_kv_shared_layers": 2,
}
"""As Gemma 4 E2B: per-layer inputs, and last layers without keys and values of their own."""

GEMMA4_MOE: dict[str, Any] = {
    **GEMMA4,
    "enable_moe_block": True,
    "num_experts": EXPERTS,
    "top_k_experts": 2,
    "moe_intermediate_size": HIDDEN,
    "attention_k_eq_v": True,
}
"""As Gemma 4 26B-A4B: experts beside the dense MLP, and full attention whose values are its keys."""

LLAMA4: dict[str, Any] = {
    "intermediate_size_mlp": HIDDEN,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "interleave_moe_layer_step": 2,
}
"""Dense and sparse layers in turn."""

TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
}
"""Settings of every vision tower."""

SIGLIP: dict[str, Any] = {**TOWER, "image_size": 8}
"""Gemma 3's."""

GEMMA4_VISION: dict[str, Any] = {**TOWER, "num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 8}
"""Gemma 4's."""

QWEN_VISION: dict[str, Any] = {**TOWER, "out_hidden_size": HIDDEN, "num_position_embeddings": 16}
"""Qwen's."""

LLAMA4_VISION: dict[str, Any] = {
    **TOWER,
    "image_size": 8,
    "pixel_shuffle_ratio": 1.0,
    "vision_output_dim": 32,
    "projector_input_dim": 32,
    "projector_output_dim": 32,
}
"""Llama 4's, with the size of its projector."""

OFFSET_NORMS = ("Gemma2RMSNorm", "Gemma3RMSNorm", "Qwen3NextRMSNorm", "Qwen3_5RMSNorm", "Qwen3_5MoeRMSNorm")
"""Norms that multiply by 1 + weight."""

GAINS = ("D", "scale", "per_expert_scale")
"""Parameters that multiply as a norm's weight does: Mamba's skip, and those of Gemma 4's router."""

BUFFERS = ("e_score_correction_bias", "expert_bias", "layer_scalar")
"""Buffers that a checkpoint holds."""


def causal(model_type: str, **settings: Any) -> Builder:
    """How to build a text model of this type."""

    def build() -> PreTrainedModel:
        config = AutoConfig.for_model(model_type, **{**SIZES, **settings})
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)

    return build


def multimodal(model_type: str, language: dict[str, Any], vision: dict[str, Any], **settings: Any) -> Builder:
    """How to build a model of this type that reads text and images."""

    def build() -> PreTrainedModel:
        config = AutoConfig.for_model(
            model_type, text_config={**SIZES, **language}, vision_config=vision, **NO_TOKENS, **settings
        )
        return AutoModelForImageTextToText.from_config(config, dtype=torch.float32)

    return build


TEXT: dict[str, Builder] = {
    "llama": causal("llama"),
    "llama_biases": causal("llama", attention_bias=True, mlp_bias=True),
    "mistral": causal("mistral"),
    "qwen2": causal("qwen2"),
    "qwen3": causal("qwen3"),
    "phi3": causal("phi3"),
    "smollm3": causal("smollm3"),
    "cohere2": causal("cohere2"),
    "gemma2": causal("gemma2"),
    "gemma3_text": causal("gemma3_text"),
    "gemma4_text": causal("gemma4_text", **GEMMA4_SHARING),
    "gemma4_text_moe": causal("gemma4_text", **GEMMA4_MOE),
    "olmo2": causal("olmo2"),
    "glm4": causal("glm4"),
    "glm4_moe": causal("glm4_moe", attention_bias=True, use_qk_norm=True, **SHARED_AND_ROUTED),
    "glm4_moe_lite": causal("glm4_moe_lite", **{**SHARED_AND_ROUTED, **LATENT}),
    "deepseek_v3": causal(
        "deepseek_v3", first_k_dense_replace=1, n_group=1, topk_group=1, **{**SHARED_AND_ROUTED, **LATENT}
    ),
    "qwen2_moe": causal(
        "qwen2_moe", num_experts=EXPERTS, shared_expert_intermediate_size=HIDDEN, mlp_only_layers=[0], **MOE
    ),
    "qwen3_moe": causal("qwen3_moe", num_experts=EXPERTS, mlp_only_layers=[0], **MOE),
    "qwen3_5_text": causal("qwen3_5_text", **{name: size for name, size in GATED_DELTA.items() if "linear" in name}),
    "qwen3_next": causal("qwen3_next", mlp_only_layers=[0], **GATED_DELTA),
    "qwen3_5_moe_text": causal("qwen3_5_moe_text", **GATED_DELTA),
    "mixtral": causal("mixtral", num_local_experts=EXPERTS),
    "minimax_m2": causal("minimax_m2", num_local_experts=EXPERTS, num_experts_per_tok=2),
    "phimoe": causal("phimoe", num_local_experts=EXPERTS, attention_bias=True, lm_head_bias=True),
    "olmoe": causal("olmoe", num_experts=EXPERTS, num_experts_per_tok=2),
    "granitemoe": causal(
        "granitemoe",
        num_local_experts=EXPERTS,
        residual_multiplier=0.5,
        embedding_multiplier=2.0,
        attention_multiplier=0.25,
        logits_scaling=4.0,
    ),
    "gpt_oss": causal("gpt_oss", num_local_experts=EXPERTS, num_experts_per_tok=2, max_position_embeddings=131072),
    "llama4_text": causal("llama4_text", **LLAMA4),
    "jamba": causal(
        "jamba",
        num_experts=EXPERTS,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=4,
        expert_layer_offset=2,
        mamba_expand=1,
        mamba_proj_bias=True,
    ),
    "lfm2_moe": causal(
        "lfm2_moe",
        num_experts=EXPERTS,
        num_dense_layers=1,
        conv_bias=True,
        layer_types=["conv", "conv", "full_attention", "conv"],
        **MOE,
    ),
}
"""Models of text alone."""

MULTIMODAL: dict[str, Builder] = {
    "gemma3": multimodal("gemma3", {}, SIGLIP, mm_tokens_per_image=4),
    "gemma4": multimodal("gemma4", {**GEMMA4_SHARING, "pad_token_id": 0}, GEMMA4_VISION),
    "qwen3_5_moe": multimodal("qwen3_5_moe", GATED_DELTA, QWEN_VISION),
    "llama4": multimodal("llama4", LLAMA4, LLAMA4_VISION),
}
"""Models of text and images."""

FAMILIES: dict[str, Builder] = {**TEXT, **MULTIMODAL}
"""What builds a random model of each family, by the name that tests give it."""

ROUTED = (
    "deepseek_v3",
    "gemma4_text_moe",
    "glm4_moe",
    "glm4_moe_lite",
    "gpt_oss",
    "granitemoe",
    "jamba",
    "lfm2_moe",
    "llama4",
    "llama4_text",
    "minimax_m2",
    "mixtral",
    "olmoe",
    "phimoe",
    "qwen2_moe",
    "qwen3_5_moe",
    "qwen3_5_moe_text",
    "qwen3_moe",
    "qwen3_next",
)
"""Those with routed experts."""


def randomize(model: PreTrainedModel, seed: int) -> None:
    """Give every parameter, and every buffer saved with them, a random value that shows where it is left out."""
    generator = torch.Generator().manual_seed(seed)
    buffers = ((path, buffer) for path, buffer in model.named_buffers() if path.endswith(BUFFERS))
    for path, tensor in (*model.named_parameters(), *buffers):
        owner, _, name = path.rpartition(".")
        noise = torch.randn(tensor.shape, generator=generator).clamp(-3, 3)
        tensor.data.copy_(_value(model.get_submodule(owner), name, noise))


def _value(owner: nn.Module, name: str, noise: torch.Tensor) -> torch.Tensor:
    """What this tensor of a module shall hold, given noise of variance 1."""
    kind = type(owner).__name__
    if name in ("e_score_correction_bias", "expert_bias"):
        return 0.1 * noise
    if name == "layer_scalar":
        return 1 + 0.07 * noise
    if "bias" in name or kind in OFFSET_NORMS:
        return 0.3 * noise
    if "Norm" in kind or name in GAINS:
        return 1 + 0.3 * noise
    if isinstance(owner, nn.Embedding):
        return noise / getattr(owner, "scalar_embed_scale", 1.0)
    return noise / noise.shape[-1] ** 0.5


def make(name: str, folder: Path, seed: int = 0, max_shard_size: str = "50GB") -> PreTrainedModel:
    """Save a random model of this family in a folder, and load it from there."""
    model = FAMILIES[name]()
    randomize(model, seed)
    logging.disable_progress_bar()
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return load(name, folder)


def load(name: str, folder: Path) -> PreTrainedModel:
    """Load a model of this family, none of whose tensors may be missing, in float32."""
    logging.disable_progress_bar()
    auto = AutoModelForImageTextToText if name in MULTIMODAL else AutoModelForCausalLM
    loaded: Any = auto.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    assert not report["missing_keys"] and not report["mismatched_keys"], report
    return model.eval()


def layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of the language model."""
    (found,) = (
        module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and path.endswith("layers") and "vision" not in path
    )
    return found


def forward(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """The logits for text alone, `[prompts, positions, vocabulary]`."""
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def layout_of(folder: Path) -> ModelLayout:
    """The layout of the model in a folder, as prepare finds it."""
    checkpoint = read_checkpoint(folder)
    return resolve_tied(inspect(folder, checkpoint.tensors, checkpoint.files, "float32"), checkpoint)


def base_of(folder: Path, layout: ModelLayout | None = None) -> BaseModel:
    """The model in a folder as one that is edited; its layout is found where none is given."""
    return proof.base_of(folder, layout or layout_of(folder))
