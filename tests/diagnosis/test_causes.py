"""Causes: a direction ablated everywhere is nowhere, one that is added is there, and patches change what they name."""

from collections.abc import Callable
from contextlib import ExitStack

import pytest
import torch

from excise.diagnosis.causes import ActivationPatching, Site, ablating, adding, most_causal
from excise.inference.forward import Batch, watch_stream
from excise.trials.refusal import Beginnings, Outcome
from excise.trials.simulation import simulated
from tests.families import ROUTED
from tests.subjects import DIRECTION, HARMLESS, LAYERS, Subject, rules

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

    questions.ask(look)
    assert seen and len(seen) % (LAYERS + 1) == 0 and max(seen) < 1e-4
    (outcome,) = questions.ask_all([trial])
    with simulated(subject.model, subject.bench.plan(rules(targets=WRITERS, through_norm="oblique"))):
        embedding = subject.model.get_input_embeddings()
        assert embedding is not None
        hook = embedding.register_forward_hook(
            lambda _module, _args, output: output - (output @ DIRECTION.float())[..., None] * DIRECTION.float()
        )
        expected = subject.bench.questions.ask()
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
    assert torch.equal(questions.ask().harmful.log_odds, questions.unedited.harmful.log_odds)


def patches(subject: Subject) -> ActivationPatching:
    harmless = subject.trace(prompts=HARMLESS)
    return ActivationPatching(subject.bench.questions, subject.components, DIRECTION, harmless)


@pytest.mark.parametrize("subject", ROUTED, indirect=True)
def test_a_patch_of_all_experts_is_a_patch_of_their_layer(subject: Subject) -> None:
    found = patches(subject)
    for (layer, role), write in subject.trace().writes.items():
        if write.experts.shape[1] > 0:
            experts: list[Site] = [(layer, role, expert) for expert in range(write.experts.shape[1])]
            assert found.effect(experts) == pytest.approx(found.effect([(layer, role, None)]), abs=1e-4)


def test_a_patch_changes_the_answer_and_is_taken_back(subject: Subject) -> None:
    found = patches(subject)
    effects = {(layer, role): found.effect([(layer, role, None)]) for layer, role in subject.trace().writes}
    assert all(abs(effect) > 1e-7 for effect in effects.values())
    assert found.effect([]) == pytest.approx(0, abs=1e-5)
    assert torch.equal(
        subject.bench.questions.ask().harmful.log_odds, subject.bench.questions.unedited.harmful.log_odds
    )


def imagined(monkeypatch: pytest.MonkeyPatch, effect: Callable[[set[int]], float]) -> ActivationPatching:
    """Patches of layers whose joint effect is made up."""
    monkeypatch.setattr(ActivationPatching, "effect", lambda _self, parts: effect({layer for layer, _, _ in parts}))
    return ActivationPatching.__new__(ActivationPatching)


LAYERS_TO_NAME: list[Site] = [(layer, "attention", None) for layer in range(4)]


def test_what_has_nearly_the_whole_effect_is_named_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {0: -0.2, 1: -5.0, 2: 0.3, 3: -4.0}
    patches = imagined(monkeypatch, lambda layers: sum(own[layer] for layer in layers))
    assert patches.smallest(LAYERS_TO_NAME, -8.9) == [LAYERS_TO_NAME[1], LAYERS_TO_NAME[3]]
    assert patches.smallest(LAYERS_TO_NAME[::-1], -5.0) == [LAYERS_TO_NAME[1]]
    assert patches.smallest(LAYERS_TO_NAME[:2], -5.2) == [LAYERS_TO_NAME[1]]


def test_parts_that_stand_in_for_each_other_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    patches = imagined(monkeypatch, lambda layers: -7.0 if {1, 2} <= layers else 0.04)
    assert patches.smallest(LAYERS_TO_NAME, -7.0) == [LAYERS_TO_NAME[1], LAYERS_TO_NAME[2]]


def test_the_most_causal_is_that_without_which_fewest_prompts_are_refused_and_of_equals_the_lowest_kl() -> None:
    def outcome(refusals: float, kl: float) -> Outcome:
        """Of ten harmful prompts; what is left over of a whole refusal is spread over them as probability."""
        odds = torch.full((10,), -20.0).double()
        odds[: int(refusals)] = 20.0
        odds += 0 if refusals % 1 == 0 else torch.logit(torch.tensor(refusals % 1 / 10).double()) + 20
        harmless = torch.full((4,), -20.0).double()
        return Outcome(Beginnings(odds, odds > 0), Beginnings(harmless, harmless > 0), torch.full((4,), kl).double())

    without = {1: outcome(3, 0.0), 2: outcome(0, 0.3), 3: outcome(0.2, 0.1), 4: outcome(1, 0.01)}
    assert most_causal(without) == [3, 2, 4, 1]
    unsure = outcome(0.9, 0.0)  # refuses no prompt for certain
    assert unsure.refusal == 0 and most_causal({**without, 5: unsure}) == [3, 2, 5, 4, 1]
    assert most_causal({1: outcome(0, float("nan"))}) == []
