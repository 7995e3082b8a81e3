"""The router's part: what it reads, what it would choose without the direction, and what its weights carry."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from excise.diagnosis.router import (
    RouterTrace,
    Routing,
    changed_choices,
    distance_of_use,
    routers,
    share_through,
    split,
)
from excise.inference.forward import Batch
from excise.inference.loading.models import decoder_layers
from excise.residual.contributions import Write
from excise.residual.experts import chosen, routed_experts
from excise.trials.simulation import simulated
from tests.families import ROUTED
from tests.subjects import HARMFUL, Subject, numbers, rules, run

Read = Callable[[nn.Module, tuple[Any, ...], Batch], Tensor]


def routing(subject: Subject) -> dict[int, Routing]:
    trace = RouterTrace(subject.model, subject.layout, subject.bench.plan(rules(targets=["router"])), HARMFUL)
    run(subject.model, trace.watch)
    return trace.routings


def at_last_tokens(subject: Subject, modules: dict[int, nn.Module], read: Read) -> dict[int, Tensor]:
    """What `read` makes of what each module is called with, ``[prompts, ...]``, as the model now is."""
    found: dict[int, dict[int, Tensor]] = {layer: {} for layer in modules}

    def watch(batch: Batch, undo: ExitStack) -> None:
        for layer, module in modules.items():

            def note(called: nn.Module, args: tuple[Tensor, ...], rows: dict[int, Tensor] = found[layer]) -> None:
                rows.update(zip(batch.rows, read(called, args, batch), strict=True))

            undo.callback(module.register_forward_pre_hook(note).remove)

    run(subject.model, watch)
    return {layer: torch.stack([rows[row] for row in range(len(HARMFUL))]) for layer, rows in found.items()}


def choices(subject: Subject) -> dict[int, Tensor]:
    """What experts each layer gives the last tokens to."""
    experts = routed_experts(subject.model, subject.layout)
    (writer,) = {writer for writer, _ in experts.values()}
    modules = {layer: module for layer, (_, module) in experts.items()}
    return at_last_tokens(subject, modules, lambda module, args, batch: chosen(writer, module, args, batch))


@pytest.mark.parametrize("subject", ROUTED, indirect=True)
def test_choices_are_those_of_the_model_and_of_the_model_with_one_router_edited(subject: Subject) -> None:
    found = routing(subject)
    for layer, used in choices(subject).items():
        assert torch.equal(found[layer].used, used)
        with simulated(subject.model, subject.bench.plan(rules(targets=["router"], layers=[layer]))):
            assert torch.equal(found[layer].blinded, choices(subject)[layer])


@pytest.mark.parametrize("subject", ROUTED, indirect=True)
def test_logits_are_the_router_s_and_without_the_direction_s_part_the_edited_router_s(subject: Subject) -> None:
    found = routing(subject)
    readers = routers(subject.layout, subject.bench.plan(rules(targets=["router"])))
    layers = decoder_layers(subject.model)
    modules = {layer: layers[layer].get_submodule(reader.in_memory) for layer, (reader, _) in readers.items()}
    read = at_last_tokens(subject, modules, lambda _module, args, batch: batch.at_end(args[0]).double())
    for layer, (_, projector) in readers.items():
        weight = modules[layer].get_parameter("weight").double()
        edited = weight - weight @ projector.right @ projector.left.T
        torch.testing.assert_close(found[layer].logits, read[layer] @ weight.T)
        without = found[layer].logits - found[layer].through
        torch.testing.assert_close(without, read[layer] @ edited.T, rtol=1e-6, atol=1e-6)


def made_up(logits: Tensor, through: Tensor) -> Routing:
    used = torch.zeros(logits.shape, dtype=torch.bool)
    return Routing(logits, through, used, used)


def test_the_share_is_of_what_tells_experts_apart() -> None:
    logits, through = numbers(1, 6, 4), numbers(2, 6, 4)
    harmless = made_up(torch.zeros(3, 4).double(), torch.zeros(3, 4).double())
    assert share_through(made_up(logits, logits), harmless) == pytest.approx(1)
    assert share_through(made_up(logits, 0 * logits), harmless) == 0
    assert share_through(made_up(logits, -logits), harmless) == pytest.approx(-1)
    plain = share_through(made_up(logits, through), harmless)
    assert plain == pytest.approx(share_through(made_up(logits + 7, through - 3), harmless))
    assert share_through(harmless, harmless) is None


def use(*counts: int) -> Routing:
    """Ten prompts, of which so many use each expert."""
    used = torch.tensor([[row < count for count in counts] for row in range(10)])
    return Routing(torch.zeros(used.shape), torch.zeros(used.shape), used, used)


def test_the_distance_of_use_goes_from_none_to_one() -> None:
    assert distance_of_use(use(4, 2, 0), use(4, 2, 0)) == pytest.approx(0, abs=1e-7)
    assert distance_of_use(use(4, 2, 0), use(8, 4, 0)) == pytest.approx(0, abs=1e-7)
    assert distance_of_use(use(4, 0, 0), use(0, 5, 5)) == pytest.approx(1)
    assert 0.1 < distance_of_use(use(4, 2, 0), use(2, 4, 1)) < 0.9


def test_changed_choices_are_those_that_blinding_undoes() -> None:
    before = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]]).bool()
    after = torch.tensor([[1, 0, 1, 0], [1, 0, 1, 0]]).bool()
    assert changed_choices(Routing(before, before, before, after)) == 0.25
    assert changed_choices(Routing(before, before, before, before)) == 0


def of_experts(written: Tensor, weights: Tensor) -> Write:
    return Write(written.sum(1), 0 * written.sum(1), 0 * written.sum(1), written, weights)


@settings(max_examples=50)
@given(st.integers(0, 2**16), st.integers(1, 5), st.integers(1, 5), st.integers(1, 6))
def test_weights_and_outputs_share_the_whole_difference(seed: int, harmful: int, harmless: int, experts: int) -> None:
    sides = []
    for side, prompts in enumerate((harmful, harmless)):
        weights = numbers(seed + side, prompts, experts).clamp(min=0)  # about half are not chosen
        sides.append(of_experts(weights * numbers(seed + 7 + side, prompts, experts), weights))
    by_weights, by_outputs = split(*sides)
    difference = sides[0].experts.mean(0) - sides[1].experts.mean(0)
    torch.testing.assert_close(by_weights + by_outputs, difference, rtol=1e-9, atol=1e-9)


def test_an_expert_that_only_one_side_uses_differs_by_its_weight() -> None:
    used, unused = torch.tensor([[0.5], [0.25]]).double(), torch.zeros(2, 1).double()
    by_weights, by_outputs = split(of_experts(used * 3, used), of_experts(unused, unused))
    assert float(by_weights) == pytest.approx(0.375 * 3) and float(by_outputs) == 0


def test_the_same_weights_leave_the_difference_to_outputs() -> None:
    weights = torch.tensor([[0.5, 0.5]]).double()
    by_weights, by_outputs = split(of_experts(weights * 3, weights), of_experts(weights * 1, weights))
    assert float(by_weights.abs().sum()) == 0 and by_outputs.tolist() == [1.0, 1.0]


def test_what_weights_multiply_an_input_is_not_split(subject: Subject) -> None:
    """Llama 4's experts read what the router weighted: their weights are told as NaN, never as a number."""
    for write in subject.trace().writes.values():
        if write.experts.shape[1] > 0:
            by_input = subject.bench.base.layout.model_type == "llama4_text"
            assert bool(write.weights.isnan().any()) == by_input
