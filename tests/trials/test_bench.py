"""Trials: what simulation says of an edit is what the edited model does, and what is direct is so exactly."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from excise.inference.forward import first_token_log_probabilities
from excise.plumbing.errors import StageError
from excise.residual.activations import activations
from excise.residual.experts import routed_experts
from excise.trials.bench import at_scale, direct_effect, layer_ranges, targets_of, with_rules
from excise.trials.refusal import Questions, log_odds
from schemas.params.ablate import Ablate
from tests.families import EXPERTS
from tests.subjects import DIRECTION, HARMFUL, HARMLESS, LAYERS, Subject, numbers, rules

WRITERS = ["attention", "mlp", "routed_experts", "shared_experts"]


def difference(sides: tuple[Tensor, Tensor]) -> float:
    """Harmful minus harmless, in the last measurement."""
    return float(sides[0][:, -1].mean() - sides[1][:, -1].mean())


def measured(model: PreTrainedModel, prompts: list[list[int]]) -> Tensor:
    return activations(model, prompts, -1, "auto", lambda _: None).double() @ DIRECTION


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_the_simulated_remainder_is_that_of_the_edited_model(subject: Subject, scale: float, tmp_path: Path) -> None:
    ablate = rules(targets=WRITERS, layers="0-2", scale=scale)
    before = difference(subject.bench.projections(at_scale(ablate, 0.0), DIRECTION))
    edited = subject.write(ablate, tmp_path)
    after = difference((measured(edited, HARMFUL), measured(edited, HARMLESS)))
    assert difference(subject.bench.projections(ablate, DIRECTION)) == pytest.approx(after, abs=1e-4 * abs(before))
    assert after != pytest.approx(before, rel=1e-3)


@pytest.mark.parametrize("through_norm", ["orthogonal", "oblique"])
def test_the_direct_remainder_is_exact_where_the_edit_reaches_no_input(subject: Subject, through_norm: str) -> None:
    """The last layer's feed-forward writers: none writes after them, but for Gemma 4's per-layer input."""
    last = [component for component in subject.components if component.layer == LAYERS - 1]
    if last[-1].writer.role == "per_layer_input":
        return
    ablate = rules(targets=WRITERS[1:], layers=[LAYERS - 1], through_norm=through_norm)
    removed = subject.removals(ablate)
    direct = direct_effect(subject.trace(removed), subject.trace(removed, HARMLESS))
    # Behind a norm another scale than 1 also changes what the norm divides by.
    for scale in [1.0] if last[-1].norms else [0.5, 1.0, 2.0]:
        simulated = difference(subject.bench.projections(at_scale(ablate, scale), DIRECTION))
        assert simulated == pytest.approx(direct.remainder(scale), abs=1e-5 * subject.trace().stream.abs().max().item())
        assert direct.remainder(scale) != pytest.approx(direct.whole, abs=1e-3)


def test_the_direct_remainder_misses_what_the_edit_does_to_later_inputs(subject: Subject) -> None:
    ablate = rules(targets=WRITERS, layers="0-2")
    removed = subject.removals(ablate)
    direct = direct_effect(subject.trace(removed), subject.trace(removed, HARMLESS))
    simulated = difference(subject.bench.projections(ablate, DIRECTION))
    assert simulated != pytest.approx(direct.remainder(1.0), abs=1e-3)


def test_what_rules_leave_out_is_what_is_left_when_all_that_they_cover_is_gone(subject: Subject) -> None:
    removed = subject.removals(rules(targets=WRITERS))
    direct = direct_effect(subject.trace(removed), subject.trace(removed, HARMLESS))
    assert direct.left_out == pytest.approx(direct.remainder(1.0), abs=1e-9)
    assert direct.whole == pytest.approx(
        float(subject.trace().stream[:, -1].mean() - subject.trace(prompts=HARMLESS).stream[:, -1].mean())
    )


@pytest.mark.parametrize(("layers", "count", "some"), [(4, 10, (1, 2)), (8, 36, (3, 7)), (46, 36, (5, 10))])
def test_ranges_are_every_run_of_blocks(layers: int, count: int, some: tuple[int, int]) -> None:
    found = layer_ranges(layers)
    assert len(set(found)) == len(found) == count
    assert (0, layers - 1) in found and some in found
    singles = [
        one for one in found if not any(one != other and one[0] <= other[0] <= other[1] <= one[1] for other in found)
    ]
    assert [layer for first, last in singles for layer in range(first, last + 1)] == list(range(layers))


def test_an_edit_that_the_model_cannot_take_is_no_outcome(subject: Subject) -> None:
    assert subject.bench.attempt(with_rules(rules(), [{"layers": 99, "measurement": 1}])) is None
    assert subject.bench.attempt(with_rules(rules(), [{"layers": 1, "measurement": 1}])) is not None


def test_an_outcome_is_that_of_the_edited_model(subject: Subject, tmp_path: Path) -> None:
    ablate = rules(targets=WRITERS, method="preserve_column_norms")
    edited = Questions(subject.write(ablate, tmp_path), HARMFUL, HARMLESS)
    found = subject.bench.outcome(ablate)
    tokens = subject.bench.questions.tokens
    answers = first_token_log_probabilities(edited.model, HARMFUL, 8, lambda _: None)
    torch.testing.assert_close(found.harmful, log_odds(answers, tokens), rtol=0, atol=1e-4)
    assert float(found.kl.mean()) > 0


def test_a_rule_of_scale_0_exempts_layers_at_every_scale(subject: Subject) -> None:
    """As the same layers written as a list do."""
    exempting = with_rules(rules(), [{"layers": "all", "measurement": 2}, {"layers": 1, "measurement": 2, "scale": 0}])
    listed = with_rules(rules(), [{"layers": [0, 2, 3], "measurement": 2}])
    for scale in (0.5, 1.0, 2.0):
        plans = [subject.bench.plan(at_scale(ablate, scale))[0] for ablate in (exempting, listed)]
        assert [(edit.tensor, edit.scale) for edit in plans[0]] == [(edit.tensor, edit.scale) for edit in plans[1]]
    nothing = with_rules(rules(), [{"layers": "all", "measurement": 2, "scale": 0}])
    assert at_scale(nothing, 1.0).rules[0].scale == 1


def test_what_rules_edit_is_all_that_any_of_them_edits() -> None:
    ablate = with_rules(
        rules(),
        [
            {"layers": 0, "measurement": 2, "targets": ["mlp"]},
            {"layers": 1, "measurement": 2, "targets": ["router", "mlp"]},
            {"layers": 2, "measurement": 2, "targets": ["embedding"], "scale": 0},
        ],
    )
    assert targets_of(ablate) == ["mlp", "router"]


def test_an_outcome_counts_what_is_added_to_the_router_s_bias(subject: Subject) -> None:
    layers = sorted(routed_experts(subject.model, subject.layout))
    bench = replace(subject.bench, log_odds={layer: numbers(layer, EXPERTS) for layer in layers})
    ablate = Ablate.model_validate({**rules(scale=0).model_dump(mode="json"), "router_bias": {"strength": 3}})
    biases = ("e_score_correction_bias", "expert_bias", "router.bias")
    if any(tensor.endswith(biases) for tensor in bench.base.tensors):
        assert float(bench.outcome(ablate).kl.mean()) > 1e-6
    else:
        assert bench.attempt(ablate) is None


def test_an_edit_that_the_model_does_not_take_is_left_out(tmp_path: Path) -> None:
    bench = Subject("gemma2", tmp_path).bench
    assert bench.attempt(rules(targets=["shared_experts"])) is None  # there are none
    assert bench.attempt(rules(targets=["mlp"])) is not None


def test_a_norm_that_is_not_finite_and_a_file_that_is_gone_are_no_edits_that_were_not_tried(tmp_path: Path) -> None:
    subject = Subject("gemma2", tmp_path)
    name = next(name for name in subject.bench.base.tensors if name.endswith("post_feedforward_layernorm.weight"))
    place = subject.bench.base.tensors[name]
    with open(tmp_path / place.file, "r+b") as file:
        file.seek(place.start)
        file.write(b"\xff" * 4)  # NaN
    with pytest.raises(StageError, match="holds NaN or infinity"):
        subject.bench.attempt(rules(targets=["mlp"]))
    (tmp_path / place.file).unlink()
    with pytest.raises(FileNotFoundError):
        subject.bench.attempt(rules(targets=["mlp"]))
