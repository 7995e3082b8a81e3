"""Which routed experts a token is given to."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from schemas.layout import Layout, Writer
from stages.base.forward import Batch
from stages.base.models import decoder_layers


def routed_experts(model: PreTrainedModel, layout: Layout) -> dict[int, tuple[Writer, nn.Module]]:
    """By layer, the module that holds its routed experts, and what the layout says of it; dense layers have none."""
    writers = {
        writer.in_memory: writer
        for variants in layout.sublayers.values()
        for variant in variants
        for writer in variant.writers
        if writer.role == "routed_experts"
    }
    found = {}
    for number, layer in enumerate(decoder_layers(model)):
        modules = dict(layer.named_modules())
        for name, writer in writers.items():
            if name in modules:
                found[number] = writer, modules[name]
    return found


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
    used = torch.zeros(len(index), count(experts), dtype=torch.bool)
    return used.scatter_(1, index, True)


def count(experts: nn.Module) -> int:
    """How many experts the module holds."""
    down: Any = experts.down_proj
    return int(down.shape[0])


def log_odds(
    harmful_counts: Sequence[int], harmful_prompts: int, harmless_counts: Sequence[int], harmless_prompts: int
) -> list[float]:
    """Log-odds of each expert's use on harmful against harmless prompts, every count plus one half."""

    def odds(count: int, prompts: int) -> float:
        return math.log((count + 0.5) / (prompts - count + 0.5))

    return [
        odds(harmful, harmful_prompts) - odds(harmless, harmless_prompts)
        for harmful, harmless in zip(harmful_counts, harmless_counts, strict=True)
    ]
