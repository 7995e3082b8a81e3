"""The residual stream at one token of each prompt, entering every decoder layer and leaving the last."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stages.base.models import decoder, decoder_layers
from stages.base.stage import StageError

FIRST_BATCH = 64
"""Where `auto` begins."""

OUT_OF_MEMORY = "the device has too little memory for a single prompt; choose another model.device or a smaller dtype"


@torch.inference_mode()
def activations(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    position: int,
    batch_size: int | Literal["auto"],
    advance: Callable[[int], None],
) -> Tensor:
    """Measure the stream, in the units of the stream.

    Measurement m enters layer m; the last one leaves the last layer, before the final norm. Prompts are padded on the
    right: what comes after a token cannot reach it, and positions stay what they are without padding.

    Args:
        prompts: the tokens of each.
        position: which token, counted from the end of the prompt: -1 is the last.
        batch_size: prompts in one forward pass; halved where memory runs out, and that is said.
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
    layers = decoder_layers(model)
    taken = torch.empty(len(prompts), len(layers) + 1, model.config.get_text_config().hidden_size)
    rows: list[int] = []
    tokens: Tensor

    def keep(measurement: int, stream: Tensor) -> None:
        taken[rows, measurement] = stream[torch.arange(len(rows)), tokens].float().cpu()

    hooks = [layer.register_forward_pre_hook(_entering(m, keep), with_kwargs=True) for m, layer in enumerate(layers)]
    hooks.append(layers[-1].register_forward_hook(_leaving(len(layers), keep)))
    try:
        by_length = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        size = FIRST_BATCH if batch_size == "auto" else batch_size
        start = 0
        while start < len(by_length):
            rows = by_length[start : start + size]
            lengths = torch.tensor([len(prompts[row]) for row in rows])
            tokens = lengths + position
            ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
            for place, row in enumerate(rows):
                ids[place, : lengths[place]] = torch.tensor(prompts[row])
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
            try:
                decoder(model)(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise StageError(OUT_OF_MEMORY) from None
                size = (size + 1) // 2
                print(f"Out of memory: going on with {size} prompts a batch", file=sys.stderr)
                continue
            start += len(rows)
            advance(len(rows))
    finally:
        for hook in hooks:
            hook.remove()
    return taken


def _entering(measurement: int, keep: Callable[[int, Tensor], None]) -> Callable[..., None]:
    def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(measurement, args[0] if args else kwargs["hidden_states"])

    return hook


def _leaving(measurement: int, keep: Callable[[int, Tensor], None]) -> Callable[..., None]:
    def hook(_layer: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        keep(measurement, output[0] if isinstance(output, tuple) else output)

    return hook
