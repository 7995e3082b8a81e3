"""The residual stream at one token of each prompt, entering every decoder layer and leaving the last."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stages.base.forward import Batch, in_batches, run_decoder
from stages.base.models import decoder_layers
from stages.base.stage import StageError

Keep = Callable[[int, Tensor], None]
"""Given a measurement and the whole stream there, ``[prompts, width, hidden]``."""


@torch.inference_mode()
def activations(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    position: int,
    batch_size: int | Literal["auto"],
    advance: Callable[[int], None],
) -> Tensor:
    """Measure the stream, in the units of the stream.

    Measurement m enters layer m; the last one leaves the last layer, before the final norm.

    Args:
        prompts: the tokens of each.
        position: which token, counted from the end of the prompt: -1 is the last.
        batch_size: prompts in one forward pass at most; halved where memory runs out, and that is said.
        advance: told the number of prompts done since.

    Returns:
        ``[prompts, layers + 1, hidden]`` in float32, on the CPU.

    Raises:
        StageError: a prompt is shorter than `position` asks.
    """
    if (shortest := min(map(len, prompts))) < -position:
        raise StageError(
            f"params.yaml: measure.position: {position} is before the start of a prompt of {shortest} tokens"
        )
    taken = torch.empty(len(prompts), len(decoder_layers(model)) + 1, model.config.get_text_config().hidden_size)

    def compute(batch: Batch) -> None:
        def keep(measurement: int, stream: Tensor) -> None:
            taken[batch.rows, measurement] = batch.at_end(stream).float().cpu()

        with ExitStack() as undo:
            watch_stream(model, keep, undo)
            run_decoder(model, batch)

    in_batches(prompts, batch_size, advance, compute, position)
    return taken


def watch_stream(model: PreTrainedModel, keep: Keep, undo: ExitStack) -> None:
    """Hand the stream at each measurement to `keep`, in every forward pass until `undo` is closed."""
    layers = decoder_layers(model)

    def entering(measurement: int) -> Callable[..., None]:
        def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keep(measurement, args[0] if args else kwargs["hidden_states"])

        return hook

    def leaving(_layer: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        keep(len(layers), output[0] if isinstance(output, tuple) else output)

    for measurement, layer in enumerate(layers):
        undo.callback(layer.register_forward_pre_hook(entering(measurement), with_kwargs=True).remove)
    undo.callback(layers[-1].register_forward_hook(leaving).remove)
