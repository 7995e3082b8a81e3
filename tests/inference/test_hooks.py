"""Hooks find the stream however a module is called and whatever it returns, and leave no trace."""

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from excise.inference.forward import on_input, on_output

STREAM = torch.arange(6.0).view(1, 2, 3)


class Layer(nn.Module):
    """Called and returning as decoder layers of transformers are and do."""

    def __init__(self, returns_tuple: bool) -> None:
        super().__init__()
        self.returns_tuple = returns_tuple

    def forward(self, hidden_states: Tensor, mask: str = "none", **named: Any) -> Any:
        self.called_with = mask, named
        return (hidden_states, mask) if self.returns_tuple else hidden_states


@pytest.mark.parametrize("by_name", [False, True])
def test_what_a_module_reads_is_changed_and_the_rest_of_its_call_is_not(by_name: bool) -> None:
    layer = Layer(returns_tuple=False)

    def call() -> Tensor:
        found: Tensor = layer(hidden_states=STREAM, mask="m", place=3) if by_name else layer(STREAM, "m", place=3)
        return found

    with ExitStack() as undo:
        on_input(layer, lambda stream: stream + 1, undo)
        assert torch.equal(call(), STREAM + 1)
        assert layer.called_with == ("m", {"place": 3})
    assert call() is STREAM


@pytest.mark.parametrize("returns_tuple", [False, True])
def test_what_a_module_writes_is_changed_and_what_else_it_returns_is_not(returns_tuple: bool) -> None:
    layer = Layer(returns_tuple)
    with ExitStack() as undo:
        on_output(layer, lambda stream: stream * 2, undo)
        found = layer(STREAM, "m")
        assert torch.equal(found[0] if returns_tuple else found, STREAM * 2)
        assert not returns_tuple or found[1] == "m"
    found = layer(STREAM)
    assert (found[0] if returns_tuple else found) is STREAM


@pytest.mark.parametrize("returns_tuple", [False, True])
def test_who_only_looks_changes_nothing(returns_tuple: bool) -> None:
    layer = Layer(returns_tuple)
    seen: list[Tensor] = []
    with ExitStack() as undo:
        on_input(layer, seen.append, undo)
        on_output(layer, seen.append, undo)
        found = layer(STREAM)
    assert (found[0] if returns_tuple else found) is STREAM
    assert [one is STREAM for one in seen] == [True, True]
