"""The stream at one token of each prompt, entering each layer and leaving the last, and the experts chosen for it."""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from excise.inference.forward import Batch, BatchSize, Tokens, watch_stream
from excise.inference.loading.models import decoder_layers
from excise.inference.passes import Answered, Passes
from excise.plumbing.errors import StageError
from excise.plumbing.progress import Advance
from excise.residual.experts import RoutedExperts, chosen, held_experts
from schemas.model import Writer


@dataclass(frozen=True)
class Activations:
    """Results of one pass over the prompts, on the CPU."""

    stream: Tensor
    """``[prompts, layers + 1, hidden]`` float32: entering each layer, and leaving the last, before the final norm."""
    used: dict[int, Tensor]
    """By layer, which experts the router chose for the token, ``[prompts, experts]`` bool."""


@torch.inference_mode()
def collect_activations(
    passes: Passes,
    experts: RoutedExperts,
    prompts: Tokens,
    position: int,
    batch_size: BatchSize,
    advance: Advance,
    answered: Answered | None = None,
) -> Activations:
    """Collect the stream and the chosen experts at `position`, counted from the end of each prompt: -1 is the last.
    `advance` receives steps, of which there are `passes.steps`; what the prompts are `answered` is told on the way.
    Raises `StageError`: a prompt has no such token."""
    if (shortest := min(map(len, prompts))) < -position:
        raise StageError(
            f"params.yaml: measure.position: {position} is before the start of a prompt of {shortest} tokens"
        )
    layers, hidden = len(decoder_layers(passes.model)), passes.model.config.get_text_config().hidden_size
    states = torch.empty(len(prompts), layers + 1, hidden)
    sizes = {layer: held_experts(module) for layer, (_, module) in experts.items()}
    used = {layer: torch.zeros(len(prompts), size, dtype=torch.bool) for layer, size in sizes.items()}

    # Results go to the batch's own rows, so a batch that is repeated after out-of-memory counts once.
    def watch(batch: Batch, undo: ExitStack) -> None:
        def keep(measurement: int, stream: Tensor) -> None:
            states[batch.rows, measurement] = batch.at_end(stream).float().cpu()

        def keep_choice(layer: int, writer: Writer, module: nn.Module, inputs: tuple[Any, ...]) -> None:
            used[layer][batch.rows] = chosen(writer, module, inputs, batch)

        watch_stream(passes.model, keep, undo)
        for layer, (writer, module) in experts.items():
            undo.callback(module.register_forward_pre_hook(partial(keep_choice, layer, writer)).remove)

    passes.run(prompts, batch_size, position, watch, advance, answered)
    return Activations(states, used)
