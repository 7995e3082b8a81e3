"""What a model does with the stream behind its last layer, where no edit of layers reaches."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from excise.discovery.gains import TOLERANCE
from excise.discovery.nested import at, replaced
from excise.discovery.stream import NoLayout, Stream, run
from excise.edit.inspection import is_tied
from excise.inference.loading.models import decoder
from schemas.basis.text import listed

_LARGE = 30.0


def refuse_what_follows(twin: PreTrainedModel, ids: Tensor, stream: Stream) -> None:
    """No matrix of the decoder may be used behind the last layer, as what a block there writes would not be edited; nor
    embeddings, unless they are the output head."""
    head = twin.get_output_embeddings()
    known = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    if is_tied(twin):
        known |= {id(parameter) for parameter in twin.get_input_embeddings().parameters()}
    inside = {id(parameter) for parameter in decoder(twin).parameters()} - known
    matrices = {
        name: parameter
        for name, parameter in twin.named_parameters()
        if parameter.ndim > 1 and parameter.requires_grad and id(parameter) in inside
    }
    logits = _behind(twin, ids, stream, lambda left: left.detach())
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(4))
    found = torch.autograd.grad((logits * noise).sum(), list(matrices.values()), allow_unused=True)
    used = [name for name, gradient in zip(matrices, found, strict=True) if gradient is not None and gradient.any()]
    if used:
        raise NoLayout(f"{listed(used)} is used behind the last layer, where an edit does not reach")
    _refuse_what_is_added_there(twin, ids, stream)


@torch.no_grad()
def _refuse_what_is_added_there(twin: PreTrainedModel, ids: Tensor, stream: Stream) -> None:
    """Whether the stream is large or very large, a norm makes the same of it, unless something is added to it."""
    large, larger = (_behind(twin, ids, stream, partial(torch.mul, scale)) for scale in (_LARGE, _LARGE * _LARGE))
    apart = [float((large - factor * larger).norm() / large.norm()) for factor in (1, 1 / _LARGE)]
    if not min(apart) <= TOLERANCE:
        raise NoLayout("something is added to the stream behind the last layer, where an edit does not reach")


def _behind(twin: PreTrainedModel, ids: Tensor, stream: Stream, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The logits of the twin if what its last layer leaves is changed."""

    def hook(_module: nn.Module, _args: Any, returned: Any) -> Any:
        return replaced(returned, stream.exits[-1], change(at(returned, stream.exits[-1])))

    with ExitStack() as undo:
        undo.callback(stream.blocks[-1].register_forward_hook(hook).remove)
        logits: Tensor = run(twin, ids).logits
    return logits
