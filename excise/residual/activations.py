"""What one token of each prompt shows: the stream entering each layer and leaving the last, and the experts it uses."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from excise.inference.forward import Batch, watch_stream
from excise.inference.loading.models import decoder_layers
from excise.inference.passes import Passes
from excise.plumbing.errors import StageError
from excise.residual.experts import RoutedExperts, chosen, held_experts
from schemas.model import Writer


@dataclass(frozen=True)
class Activations:
    """What one pass over the prompts collected, on the CPU."""

    stream: Tensor
    """``[prompts, layers + 1, hidden]`` float32, in the units of the stream. Measurement m enters layer m; the last one
    leaves the last layer, before the final norm."""
    used: dict[int, Tensor]
    """By layer, which experts the token was given to, ``[prompts, experts]`` bool."""


@torch.inference_mode()
def collect_activations(
    passes: Passes,
    experts: RoutedExperts,
    prompts: Sequence[Sequence[int]],
    position: int,
    batch_size: int | Literal["auto"],
    advance: Callable[[int], None],
) -> Activations:
    """Collect the stream, and which experts are used. Raises `StageError`: a prompt is shorter than `position` asks.

    Args:
        passes: the model, in memory or not.
        experts: where to look for the latter.
        prompts: the tokens of each.
        position: which token, counted from the end of the prompt: -1 is the last.
        batch_size: prompts in one forward pass at most; halved where memory runs out, with a warning.
        advance: told the number of steps done since, of which there are `passes.steps`.
    """
    if (shortest := min(map(len, prompts))) < -position:
        raise StageError(
            f"params.yaml: measure.position: {position} is before the start of a prompt of {shortest} tokens"
        )
    layers, hidden = len(decoder_layers(passes.model)), passes.model.config.get_text_config().hidden_size
    taken = torch.empty(len(prompts), layers + 1, hidden)
    sizes = {layer: held_experts(module) for layer, (_, module) in experts.items()}
    used = {layer: torch.zeros(len(prompts), size, dtype=torch.bool) for layer, size in sizes.items()}

    # Both fill the batch's own rows, so that a batch that ran out of memory and comes again is seen once.
    def watch(batch: Batch, undo: ExitStack) -> None:
        def keep(measurement: int, stream: Tensor) -> None:
            taken[batch.rows, measurement] = batch.at_end(stream).float().cpu()

        def note(layer: int, writer: Writer, module: nn.Module, given: tuple[Any, ...]) -> None:
            used[layer][batch.rows] = chosen(writer, module, given, batch)

        watch_stream(passes.model, keep, undo)
        for layer, (writer, module) in experts.items():
            undo.callback(module.register_forward_pre_hook(partial(note, layer, writer)).remove)

    passes.run(prompts, batch_size, position, watch, advance)
    return Activations(taken, used)
