"""Hooks on a model in memory. The one place that knows which argument of a module is the residual stream, and which
part of what it returns."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from excise.inference.models import decoder_layers

Change = Callable[[Tensor], Tensor | None]
"""Given what a module reads or writes; what it returns takes its place, and None leaves it as it is."""


def split_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """Of what a module is called with, the stream, and all else: positions, masks, what layers share."""
    if args:
        return args[0], args[1:], kwargs
    return kwargs["hidden_states"], (), {name: value for name, value in kwargs.items() if name != "hidden_states"}


def stream_of(output: Any) -> Tensor:
    """Of what a module returns, the stream."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def on_input(module: nn.Module, change: Change, undo: ExitStack) -> None:
    """Pass what the module reads through `change`, in every forward pass until `undo` is closed."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        stream, others, named = split_call(args, kwargs)
        changed = change(stream)
        return None if changed is None else ((changed, *others), named)

    undo.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)


def on_output(module: nn.Module, change: Change, undo: ExitStack) -> None:
    """Pass what the module writes through `change`, likewise."""

    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        changed = change(stream_of(output))
        return (changed, *output[1:]) if changed is not None and isinstance(output, tuple) else changed

    undo.callback(module.register_forward_hook(hook).remove)


def change_stream(model: PreTrainedModel, measurement: int, change: Change, undo: ExitStack) -> None:
    """Pass the whole stream at a measurement, ``[prompts, width, hidden]``, through `change`, likewise. Measurement m
    enters layer m; the last one leaves the last layer."""
    layers = decoder_layers(model)
    if measurement < len(layers):
        on_input(layers[measurement], change, undo)
    else:
        on_output(layers[-1], change, undo)


def watch_stream(model: PreTrainedModel, keep: Callable[[int, Tensor], None], undo: ExitStack) -> None:
    """Give `keep` each measurement and the whole stream there, likewise."""
    for measurement in range(len(decoder_layers(model)) + 1):
        change_stream(model, measurement, partial(keep, measurement), undo)
