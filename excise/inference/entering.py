"""The decoder around its layers: what it calls them with, and what its head makes of what the last one returns. Layers
stand aside meanwhile, so that they can be run one by one."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from excise.inference.forward import split_call
from excise.inference.loading.models import decoder, decoder_layers
from excise.plumbing.errors import StageError

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""A layer's arguments other than the stream: masks, positions, what layers share."""


@dataclass
class Entered:
    """Prompts before the first layer."""

    stream: Tensor
    """``[prompts, width, hidden]``."""
    calls: list[Call]
    """By layer."""


def enter(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor,
    device: torch.device,
    cache: Any = None,
    is_checked: bool = False,
) -> Entered:
    """What enters the first layer for ``[prompts, width]`` tokens, and what the decoder calls its layers with. `cache`
    holds earlier tokens, which `mask` covers too. Raises `StageError`: it changes the stream between layers, which is
    looked at unless it `is_checked`."""
    streams: list[Tensor] = []
    calls: list[Call] = []

    def record(*args: Any, **kwargs: Any) -> Tensor:
        stream, others, named = split_call(args, kwargs)
        if not streams:
            streams.append(stream.clone())  # so that a change in place is seen too
        elif not is_checked and not torch.allclose(stream, streams[0], rtol=0, atol=0, equal_nan=True):
            raise StageError(
                f"{type(model).__name__} changes the stream between its layers, so it cannot be run layer by layer; "
                "set measure.offload: off"
            )
        calls.append((others, named))
        return stream

    state = {"use_cache": False} if cache is None else {"use_cache": True, "past_key_values": cache}
    with ExitStack() as undo:
        _instead_of_layers(model, record, undo)
        decoder(model)(input_ids=ids.to(device), attention_mask=mask.to(device), **state)
    return Entered(streams[0], calls)


def next_token(model: PreTrainedModel, stream: Tensor) -> Tensor:
    """The log-probabilities of the next token, ``[rows, vocabulary]`` float32 on the CPU, in nats, that a model makes
    of what its last layer returns, ``[rows, hidden]``."""
    last = decoder_layers(model)[-1]

    def give(*args: Any, **kwargs: Any) -> Tensor:
        return split_call(args, kwargs)[0]

    with ExitStack() as undo:
        _instead_of_layers(model, give, undo)
        last.forward = lambda *_args, **_kwargs: stream[:, None]
        embedding = model.get_input_embeddings()
        assert embedding is not None
        # Other parts may be on other devices, or not in memory.
        place = next(embedding.parameters()).device
        ids = torch.zeros(len(stream), 1, dtype=torch.long, device=place)
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, 0]
    return torch.log_softmax(logits.float(), dim=-1).cpu()


def _instead_of_layers(model: PreTrainedModel, forward: Callable[..., Tensor], undo: ExitStack) -> None:
    for layer in decoder_layers(model):
        # One that accelerate has put there moves inputs between devices.
        own = vars(layer).get("forward")
        undo.callback(vars(layer).pop, "forward") if own is None else undo.callback(setattr, layer, "forward", own)
        layer.forward = forward
