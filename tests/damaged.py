"""Tiny models on disk with a tokenizer, to be damaged as people's are who save, merge, cut and convert checkpoints."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers import PreTrainedTokenizerFast as Fast
from transformers.utils import logging

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

SPECIAL = ["<pad>", "<bos>", "<eos>", "<|system|>", "<|user|>", "<|assistant|>"]
TURNS = "{%- for m in messages -%}{{- '<|' + m['role'] + '|>' + m['content'] + '\n' -}}{%- endfor -%}"
OPEN = "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
TEMPLATE = "{{ bos_token if bos_token else '' }}" + TURNS + OPEN

HIDDEN, LAYERS = 64, 4
SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": HIDDEN,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": HIDDEN,
    "decoder_sparse_step": 1,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}

Tensors = dict[str, torch.Tensor]


def tokenizer(pad: bool = True, eos: bool = True, adds_bos: bool = False, template: str = TEMPLATE) -> Fast:
    """A tokenizer of single bytes, with a chat template."""
    alphabet = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    if adds_bos:
        bos = ("<bos>", made.token_to_id("<bos>"))
        made.post_processor = processors.TemplateProcessing(single="<bos> $A", pair="<bos> $A $B", special_tokens=[bos])
    named = {"bos_token": "<bos>"} | ({"pad_token": "<pad>"} if pad else {}) | ({"eos_token": "<eos>"} if eos else {})
    fast = Fast(tokenizer_object=made, clean_up_tokenization_spaces=False, model_max_length=256, **named)
    fast.chat_template = template
    return fast


def build(model_type: str, seed: int = 0, **config: Any) -> PreTrainedModel:
    """A random model of text alone."""
    return _random(AutoModelForCausalLM, AutoConfig.for_model(model_type, **SIZES, **config), seed)


def build_wrapper() -> PreTrainedModel:
    """A model of text and images around a known one of text, which transformers has no class for text alone for."""
    text, vision = {"model_type": "mistral", **SIZES}, {"model_type": "pixtral", **VISION}
    config = AutoConfig.for_model("mistral3", text_config=text, vision_config=vision, image_token_index=5)
    return _random(AutoModelForImageTextToText, config, 0)


def _random(auto: Any, config: Any, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = auto.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    return model


def save(model: PreTrainedModel, folder: Path, own: Fast | None = None, **how: Any) -> Path:
    """Save a model with its tokenizer."""
    logging.disable_progress_bar()
    model.save_pretrained(folder, **how)
    (own or tokenizer()).save_pretrained(folder)
    return folder


def read_tensors(folder: Path) -> Tensors:
    """Those that the index names, or else those of the single file."""
    index = folder / INDEX
    files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else [SINGLE]
    return {name: tensor for file in files for name, tensor in load_file(folder / file).items()}


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Change the tensors of a model of one file."""
    tensors = {name: tensor.clone().contiguous() for name, tensor in change(load_file(folder / SINGLE)).items()}
    save_file(tensors, folder / SINGLE, {"format": "pt"})


def configure(folder: Path, **changed: Any) -> None:
    """Change keys of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def without(*names: str) -> Callable[[Tensors], Tensors]:
    """Leaves these tensors out."""
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def fused(tensors: Tensors) -> Tensors:
    """Experts as transformers holds them in memory: one tensor a layer."""
    made = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}.mlp.experts."
        down, gate, up = (
            torch.stack([tensors[f"{prefix}{expert}.{part}_proj.weight"] for expert in range(4)])
            for part in ("down", "gate", "up")
        )
        made[f"{prefix}down_proj"] = down
        made[f"{prefix}gate_up_proj"] = torch.cat([gate, up], 1)
    return made


def beside_shards(folder: Path) -> Path:
    """A model in shards, and beside their index a whole file with other weights."""
    save(build("llama", seed=1), folder, max_shard_size="100KB")
    save(build("llama", seed=0), folder / "other")
    shutil.move(folder / "other" / SINGLE, folder / SINGLE)
    shutil.rmtree(folder / "other")
    return folder
