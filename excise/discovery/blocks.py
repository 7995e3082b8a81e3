"""One pass through a model whose blocks are cut apart, so that gradients of what a block writes are its own.

The stream that enters the first block is scaled by 1e5. Norms cancel that, so every sublayer computes what it did, but
what earlier sublayers of the same block wrote is then 1e-5 of what it reads: a gradient is that of one write."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from excise.discovery.nested import at, replaced, tensors
from excise.discovery.stream import Stream, run

SCALE = 1e5


@dataclass
class Block:
    """What one block did, or the frame before the first one; rows are tokens."""

    module: nn.Module
    rows: int
    tokens: int
    """Of each sequence."""
    hidden: int
    entered: Tensor | None = None
    """What entered it, scaled, without the gradient of what came before; None for the frame."""
    beside: list[Tensor] = field(default_factory=list)
    """What else entered it and depends on weights, such as inputs that each layer looks up for itself."""
    left: Tensor | None = None
    """What it returned, with its gradient."""
    between: list[Tensor] = field(default_factory=list)
    """Everything of the stream's shape that it computed, ``[rows, hidden]``."""
    gained: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """A vector ``[hidden]`` and what a function made with it, ``[rows, hidden]``, in the order of time."""
    read: dict[int, Tensor] = field(default_factory=dict)
    """By a parameter's identity, what it was first multiplied with, ``[rows, hidden]``."""

    def received(self) -> Tensor:
        """``[rows, hidden]`` float64: what entered it, without its gradient."""
        assert self.entered is not None
        return self.entered.detach().reshape(self.rows, self.hidden).double()

    def written(self) -> Tensor:
        """``[rows, hidden]``: what it returned."""
        assert self.left is not None
        return self.left.reshape(self.rows, self.hidden)


class _Watch(TorchFunctionMode):
    """Keeps what functions make within a block."""

    def __init__(self, frame: Block) -> None:
        super().__init__()
        self.block: Block | None = frame

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if self.block is not None:
            self._keep(self.block, [tensor for _, tensor in tensors((args, kwargs or {}))], made)
        return made

    def _keep(self, block: Block, given: list[Tensor], made: Any) -> None:
        rows = [each.detach().reshape(-1, block.hidden) for each in given if _is_stream(each, block)]
        for parameter in given:
            if isinstance(parameter, nn.Parameter) and parameter.ndim > 1 and rows:
                block.read.setdefault(id(parameter), rows[0].clone())
        gains = [each.detach().flatten().clone() for each in given if _is_vector(each, block)]
        for _, tensor in tensors(made):
            if _is_stream(tensor, block):
                kept = tensor.detach().reshape(-1, block.hidden).clone()
                block.between.append(kept)
                if len(gains) > 1:  # a LayerNorm's bias, its last argument, is no part of what it made of its input
                    kept = kept - gains[-1]
                block.gained += [(gain, kept) for gain in gains]


def _is_stream(tensor: Tensor, block: Block) -> bool:
    whole = tensor.numel() == block.rows * block.hidden
    return tensor.is_floating_point() and tensor.shape[-1:] == (block.hidden,) and whole


def _is_vector(tensor: Tensor, block: Block) -> bool:
    return tensor.is_floating_point() and tensor.shape[-1:] == (block.hidden,) and tensor.numel() == block.hidden


def cut_apart(model: nn.Module, ids: Tensor, stream: Stream) -> list[Block]:
    """Run the model with its blocks cut apart; the frame comes first."""
    frame, *blocks = (Block(module, stream.rows, ids.shape[1], stream.hidden) for module in (model, *stream.blocks))
    watch = _Watch(frame)
    with ExitStack() as undo:
        for number, block in enumerate(blocks):
            _hook(block, number, stream, frame, watch, undo)
        with watch, torch.enable_grad():
            run(model, ids)
    return [frame, *blocks]


def _hook(block: Block, number: int, stream: Stream, frame: Block, watch: _Watch, undo: ExitStack) -> None:
    def enter(_module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        watch.block = None
        given = at((args, kwargs), stream.entries[number])
        if number == 0:
            frame.left, given = given, given * SCALE
        others = (tensor for path, tensor in tensors((args, kwargs)) if path != stream.entries[number])
        block.beside = [tensor for tensor in others if tensor.requires_grad]
        block.entered = given.detach().requires_grad_(True)
        watch.block = block
        return tuple(replaced((args, kwargs), stream.entries[number], block.entered))

    def leave(_module: nn.Module, _args: Any, returned: Any) -> None:
        block.left = at(returned, stream.exits[number])
        watch.block = None

    undo.callback(block.module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True).remove)
    undo.callback(block.module.register_forward_hook(leave).remove)
