"""Trials: what simulation says of an edit is what the edited model does."""

from functools import partial
from operator import mul
from pathlib import Path

import pytest
import torch
from torch import Tensor

from excise.inference.forward import first_token_log_probabilities
from excise.plumbing.errors import StageError
from excise.trials.bench import layer_ranges, with_rules, with_scales
from excise.trials.refusal import log_odds
from tests.subjects import DIRECTION, HARMFUL, HARMLESS, Subject, outcome, rules, stream

WRITERS = ["attention", "mlp", "routed_experts", "shared_experts"]


def difference(sides: tuple[Tensor, Tensor]) -> float:
    """Harmful minus harmless, in the last measurement."""
    return float(sides[0][:, -1].mean() - sides[1][:, -1].mean())


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_the_simulated_remainder_is_that_of_the_edited_model(subject: Subject, scale: float, tmp_path: Path) -> None:
    ablate = rules(targets=WRITERS, layers="0-2", scale=scale)
    before = difference(subject.projections(rules(scale=0.0)))
    edited = subject.write(ablate, tmp_path)
    harmful, harmless = (stream(edited, prompts).double() @ DIRECTION for prompts in (HARMFUL, HARMLESS))
    after = difference((harmful, harmless))
    assert difference(subject.projections(ablate)) == pytest.approx(after, abs=1e-4 * abs(before))
    assert after != pytest.approx(before, rel=1e-3)


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
    assert subject.bench.trial(with_rules(rules(), [{"layers": 99, "measurement": 1}])) is None
    assert subject.bench.trial(with_rules(rules(), [{"layers": 1, "measurement": 1}])) is not None


def test_an_outcome_is_that_of_the_edited_model(subject: Subject, tmp_path: Path) -> None:
    ablate = rules(targets=WRITERS, method="preserve_column_norms")
    edited = subject.write(ablate, tmp_path)
    found = outcome(subject, ablate)
    tokens = subject.bench.questions.tokens
    answers = first_token_log_probabilities(edited, HARMFUL, 8, lambda _: None)
    torch.testing.assert_close(found.harmful.log_odds, log_odds(answers, tokens), rtol=0, atol=1e-4)
    assert float(found.kl.mean()) > 0


def test_a_rule_of_scale_0_exempts_layers_at_every_scale(subject: Subject) -> None:
    """As the same layers written as a list do."""
    exempting = with_rules(rules(), [{"layers": "all", "measurement": 2}, {"layers": 1, "measurement": 2, "scale": 0}])
    listed = with_rules(rules(), [{"layers": [0, 2, 3], "measurement": 2}])
    for times in (0.5, 1.0, 2.0):
        plans = [subject.bench.plan(with_scales(ablate, partial(mul, times))) for ablate in (exempting, listed)]
        assert [(edit.tensor, edit.scale) for edit in plans[0]] == [(edit.tensor, edit.scale) for edit in plans[1]]
        assert {edit.scale for edit in plans[0]} == {times}


def test_an_edit_that_the_model_does_not_take_is_left_out(tmp_path: Path) -> None:
    bench = Subject("gemma2", tmp_path).bench
    assert bench.trial(rules(targets=["shared_experts"])) is None  # there are none
    assert bench.trial(rules(targets=["mlp"])) is not None


def test_a_norm_that_is_not_finite_and_a_file_that_is_gone_are_no_edits_that_were_not_tried(tmp_path: Path) -> None:
    subject = Subject("gemma2", tmp_path)
    name = next(name for name in subject.bench.base.tensors if name.endswith("post_feedforward_layernorm.weight"))
    place = subject.bench.base.tensors[name]
    with open(tmp_path / place.file, "r+b") as file:
        file.seek(place.start)
        file.write(b"\xff" * 4)  # NaN
    with pytest.raises(StageError, match="holds NaN or infinity"):
        subject.bench.trial(rules(targets=["mlp"]))
    (tmp_path / place.file).unlink()
    with pytest.raises(FileNotFoundError):
        subject.bench.trial(rules(targets=["mlp"]))
