"""Which routed experts a token is given to."""

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
"""By layer, what the layout says of its routed experts, and the module that holds them."""


def routed_experts(model: PreTrainedModel, layout: Layout) -> dict[int, tuple[Writer, nn.Module]]:
    """By layer, the module that holds its routed experts, and what the layout says of it; dense layers have none."""
    variants = [variant for variants in layout.sublayers.values() for variant in variants]
    writers = [writer for variant in variants for writer in variant.writers if writer.role == "routed_experts"]
    modules = [dict(layer.named_modules()) for layer in decoder_layers(model)]
    return {
        layer: (writer, inside[writer.in_memory])
        for layer, inside in enumerate(modules)
        for writer in writers
        if writer.in_memory in inside
    }


def chosen(writer: Writer, experts: nn.Module, given: tuple[Any, ...], batch: Batch) -> Tensor:
    """Which experts the token that is asked about is given to, ``[prompts, experts]`` bool.

    Args:
        given: what the module of the experts was called with: tokens, the numbers of their experts and the weights of
            these; or, where the weights multiply what experts read, the tokens as each expert gets them, zeros where
            it is not chosen.
    """
    if writer.routed == "input":
        return batch.each_at_end(given[0]).ne(0).any(dim=-1).T.cpu()
    index = batch.at_end(given[1]).cpu()
    used = torch.zeros(len(index), held_experts(experts), dtype=torch.bool)
    return used.scatter_(1, index, True)


def held_experts(experts: nn.Module) -> int:
    """How many experts the module holds."""
    down: Any = experts.down_proj
    return int(down.shape[0])


def count_use(used: Mapping[int, Tensor], harmful_prompts: int, harmless_prompts: int) -> ExpertUse:
    """How many prompts of each side use each expert; `used` is by layer, ``[prompts, experts]`` bool, the harmful
    prompts first."""
    layers = []
    for layer, each in sorted(used.items()):
        harmful, harmless = (side.sum(dim=0).tolist() for side in (each[:harmful_prompts], each[harmful_prompts:]))
        layers.append(LayerExpertUse(layer=layer, harmful=harmful, harmless=harmless))
    return ExpertUse(harmful_prompts=harmful_prompts, harmless_prompts=harmless_prompts, layers=layers)
