"""Causes: a direction ablated everywhere is nowhere, one that is added is there, and patches change what they name."""

from collections.abc import Callable, Collection
from contextlib import ExitStack
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from excise.diagnosis.causes import Patches, Site, ablating, adding, most_causal
from excise.diagnosis.writers import Contrast, Importance
from excise.inference.forward import Batch, watch_stream
from excise.trials.refusal import Beginnings, Outcome
from excise.trials.simulation import simulated
from tests.families import ROUTED
from tests.subjects import DIRECTION, HARMLESS, LAYERS, Subject, ask, rules

WRITERS = ["attention", "mlp", "routed_experts", "shared_experts", "per_layer_input"]


def largest_projection(subject: Subject) -> float:
    """On the direction, at any measurement, of the model as it now is."""
    return float(torch.cat(subject.projections(rules(scale=0.0))).abs().max())


def test_a_direction_that_is_ablated_everywhere_is_nowhere(subject: Subject) -> None:
    """What the model then answers is what it answers when all writers are edited and the embeddings hold none of it."""
    questions, seen = subject.bench.questions, list[float]()
    trial = ablating(subject.model, subject.components, DIRECTION)

    def look(batch: Batch, undo: ExitStack) -> None:
        trial.watch(subject.model)(batch, undo)
        watch_stream(
            subject.model, lambda _, stream: seen.append(float((stream.double() @ DIRECTION).abs().max())), undo
        )

    ask(questions, look)
    assert seen and len(seen) % (LAYERS + 1) == 0 and max(seen) < 1e-4
    (outcome,) = questions.ask_all([trial])
    with simulated(subject.model, subject.bench.plan(rules(targets=WRITERS, through_norm="oblique"))):
        embedding = subject.model.get_input_embeddings()
        assert embedding is not None
        hook = embedding.register_forward_hook(
            lambda _module, _args, output: output - (output @ DIRECTION.float())[..., None] * DIRECTION.float()
        )
        expected = ask(subject.bench.questions)
        assert largest_projection(subject) < 1e-4
        hook.remove()
    if not any(component.norms for component in subject.components):
        torch.testing.assert_close(outcome.kl, expected.kl, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(outcome.harmful.log_odds, expected.harmful.log_odds, rtol=0, atol=1e-3)
    assert float(outcome.kl.mean()) > 1e-6


def test_what_is_added_at_a_measurement_is_there(subject: Subject) -> None:
    questions = subject.bench.questions
    trials = [adding(subject.model, measurement, 5 * DIRECTION) for measurement in range(LAYERS + 1)]
    nothing, *found = questions.ask_all([adding(subject.model, 2, torch.zeros_like(DIRECTION)), *trials])
    torch.testing.assert_close(nothing.harmful.log_odds, questions.unedited.harmful.log_odds, rtol=0, atol=1e-4)
    assert len({round(float(one.kl.mean()), 7) for one in found}) == LAYERS + 1
    assert min(float(one.kl.mean()) for one in found) > 1e-6
    assert torch.equal(ask(questions).harmful.log_odds, questions.unedited.harmful.log_odds)


def effects(subject: Subject, *several: Collection[Site]) -> list[float]:
    questions = subject.bench.questions
    patches = Patches(questions, subject.components, DIRECTION, subject.trace(prompts=HARMLESS))
    questions.run("Patches", [patches.ask(several)])
    patches.answered()
    return [patches.effect(sites) for sites in several]


@pytest.mark.parametrize("subject", ROUTED, indirect=True)
def test_a_patch_of_all_experts_is_a_patch_of_their_layer(subject: Subject) -> None:
    for (layer, role), write in subject.trace().writes.items():
        if write.experts.shape[1] > 0:
            experts: list[Site] = [(layer, role, expert) for expert in range(write.experts.shape[1])]
            together, layer_s = effects(subject, experts, [(layer, role, None)])
            assert together == pytest.approx(layer_s, abs=1e-4)


def test_a_patch_changes_the_answer_and_is_taken_back(subject: Subject) -> None:
    found = effects(subject, *([(layer, role, None)] for layer, role in subject.trace().writes))
    assert all(abs(effect) > 1e-7 for effect in found)
    assert torch.equal(ask(subject.bench.questions).harmful.log_odds, subject.bench.questions.unedited.harmful.log_odds)


LAYERS_TO_NAME: list[Site] = [(layer, "attention", None) for layer in range(4)]


def named(writes: dict[int, float], effect: Callable[[set[int]], float]) -> list[int]:
    """The layers that are named if attention in each of four writes so much, with made-up joint effects."""
    write = {layer: torch.tensor([much]).double() for layer, much in writes.items()}
    patches = SimpleNamespace(sites=LAYERS_TO_NAME, effect=lambda sites: effect({layer for layer, _, _ in sites}))
    contrast = SimpleNamespace(difference=lambda site: float(write[site[0]]), harmful=SimpleNamespace(writes={}))
    return Importance(cast(Patches, patches), cast(Contrast, contrast)).name_writer().layers


def test_what_has_nearly_the_whole_effect_is_named_and_no_more() -> None:
    own = {0: -0.2, 1: -5.0, 2: 0.3, 3: -4.0}

    def summed(layers: set[int]) -> float:
        return sum(own[layer] for layer in layers)

    assert named({0: 0.1, 1: 2.0, 2: 0.2, 3: 1.0}, summed) == [1, 3]
    # Also where what writes most has no effect.
    assert named({0: 9.0, 1: 2.0, 2: 5.0, 3: 1.0}, summed) == [1, 3]


def test_parts_that_stand_in_for_each_other_are_named_together() -> None:
    def either(layers: set[int]) -> float:
        return -7.0 if {1, 2} <= layers else 0.04

    assert named({0: 0.1, 1: 2.0, 2: 1.0, 3: 0.2}, either) == [1, 2]
    assert named({0: 9.0, 1: 2.0, 2: 1.0, 3: 8.0}, either) == [1, 2]


def test_parts_that_need_each_other_are_named_by_one_of_them() -> None:
    assert named({0: 9.0, 1: 2.0, 2: 1.0, 3: 8.0}, lambda layers: -7.0 if layers & {1, 2} else 0.0) in ([1], [2])


def test_the_most_causal_removes_refusal_at_the_lowest_kl_or_else_leaves_the_least_and_was_asked_all() -> None:
    def outcome(refusals: float, kl: float, asked: int = 10) -> Outcome:
        """Of ten harmful prompts, so many are refused for certain."""
        odds = torch.full((asked,), -20.0).double()
        odds[: int(refusals)] = 20.0
        harmless, drift = torch.full((4,), -20.0).double(), torch.full((4,), kl).double()
        weights = None if asked == 10 else torch.full((asked,), 1 / asked).double()
        return Outcome(Beginnings(odds, odds > 0, weights), Beginnings(harmless, harmless > 0), 9 - drift, drift)

    without = {1: outcome(3, 0.0), 2: outcome(0, 0.3), 3: outcome(0, 0.1), 4: outcome(1, 0.01)}
    assert most_causal(without) == [3, 2, 4, 1]
    assert most_causal({**without, 5: outcome(0, 0.0, asked=5)}) == [3, 2, 4, 1, 5]
    assert most_causal({1: outcome(0, float("nan"))}) == []
