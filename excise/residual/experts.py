"""Which routed experts are chosen for a token."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from excise.inference.forward import Batch
from excise.inference.loading.models import decoder_layers
from schemas.directions import ExpertUse, LayerExpertUse
from schemas.model import Layout, Writer

RoutedExperts = Mapping[int, tuple[Writer, nn.Module]]
"""By layer, the layout's entry for its routed experts, and the module that holds them."""


def routed_experts(model: PreTrainedModel, layout: Layout) -> dict[int, tuple[Writer, nn.Module]]:
    """The routed experts of each layer (`RoutedExperts`); dense layers are left out."""
    writers = [writer for writer in layout.writers if writer.role == "routed_experts"]
    modules = [dict(layer.named_modules()) for layer in decoder_layers(model)]
    return {
        layer: (writer, inside[writer.in_memory])
        for layer, inside in enumerate(modules)
        for writer in writers
        if writer.in_memory in inside
    }


def chosen(writer: Writer, experts: nn.Module, inputs: tuple[Any, ...], batch: Batch) -> Tensor:
    """Which experts are chosen for the measured token, ``[prompts, experts]`` bool, by inputs of their module: tokens,
    indices and weights; or, if weights multiply the tokens, each expert's tokens, zeros where it is not chosen."""
    if writer.routed == "input":
        return batch.each_at_end(inputs[0]).ne(0).any(dim=-1).T.cpu()
    index = batch.at_end(inputs[1]).cpu()
    return torch.zeros(len(index), held_experts(experts), dtype=torch.bool).scatter_(1, index, True)


def held_experts(experts: Any) -> int:
    return int(experts.down_proj.shape[0])


def count_use(used: Mapping[int, Tensor], harmful_prompts: int, harmless_prompts: int) -> ExpertUse:
    """The number of prompts of each kind that use each expert, from `Activations.used` with the harmful ones first."""
    layers = []
    for layer, table in sorted(used.items()):
        harmful, harmless = (kind.sum(dim=0).tolist() for kind in (table[:harmful_prompts], table[harmful_prompts:]))
        layers.append(LayerExpertUse(layer=layer, harmful=harmful, harmless=harmless))
    return ExpertUse(harmful_prompts=harmful_prompts, harmless_prompts=harmless_prompts, layers=layers)
