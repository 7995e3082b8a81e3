"""What the current rules would do: direct effects are exact, and simulation is what the edited model does."""

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from excise.checkpoint.weights import read_checkpoint
from excise.diagnosis import current_rules
from excise.diagnosis.current_rules import Written, direct_effect, is_ruinous, main_measurement, simulate
from excise.inference.layers import LayeredModel
from excise.inference.passes import Offloaded
from excise.plumbing.errors import StageError
from excise.residual.experts import routed_experts
from excise.trials.bench import with_rules, with_scales
from excise.trials.changes import of_edits
from excise.trials.engines import InMemory, LayerByLayer
from excise.trials.perplexity import Reading
from excise.trials.questions import Asked, Questions, questions_of
from excise.trials.refusal import Outcome
from schemas.params.ablate import Ablate
from schemas.simulation import Simulation
from tests.families import EXPERTS
from tests.subjects import DIRECTION, HARMFUL, HARMLESS, LAYERS, Subject, numbers, outcome, rules, statistics, stream

ANSWERS = [[3, 9, 4], [8], [1, 2], [5, 6, 7, 8], [2, 2]]
"""To the harmless prompts; any will do."""
WRITERS = ["attention", "mlp", "routed_experts", "shared_experts"]
RULES = rules(targets=WRITERS, layers="0-2")


def times(ablate: Ablate, factor: float) -> Ablate:
    return with_scales(ablate, lambda scale: factor * scale)


def difference(kinds: tuple[Tensor, Tensor]) -> float:
    """Harmful minus harmless, in the last measurement."""
    return float(kinds[0][:, -1].mean() - kinds[1][:, -1].mean())


def simulated(subject: Subject, ablate: Ablate, use_odds: dict[int, Tensor] | None = None) -> Simulation:
    base, directions, model = subject.bench.base, subject.bench.directions, subject.model
    questions = questions_of(model, HARMFUL, HARMLESS, subject.bench.questions.tokens)
    written = Written("answers", HARMLESS, ANSWERS)
    return simulate(base, directions, use_odds or {}, questions, written, ablate, statistics(), "0" * 64)


@pytest.mark.parametrize("through_norm", ["orthogonal", "oblique"])
def test_the_direct_remainder_is_exact_where_the_edit_reaches_no_input(subject: Subject, through_norm: str) -> None:
    """The last layer's feed-forward writers: none writes after them, but for Gemma 4's per-layer input."""
    last = [component for component in subject.components if component.layer == LAYERS - 1]
    if last[-1].writer.role == "per_layer_input":
        return
    ablate = rules(targets=WRITERS[1:], layers=[LAYERS - 1], through_norm=through_norm)
    removed = subject.bench.plan(ablate)
    direct = direct_effect(subject.trace(removed), subject.trace(removed, HARMLESS))
    # Behind a norm another scale than 1 also changes what the norm divides by.
    for scale in [1.0] if last[-1].norms else [0.5, 1.0, 2.0]:
        simulated = difference(subject.projections(times(ablate, scale)))
        assert simulated == pytest.approx(direct.remainder(scale), abs=1e-5 * subject.trace().stream.abs().max().item())
        assert direct.remainder(scale) != pytest.approx(direct.whole, abs=1e-3)


def test_the_direct_remainder_misses_what_the_edit_does_to_later_inputs(subject: Subject) -> None:
    ablate = rules(targets=WRITERS, layers="0-2")
    removed = subject.bench.plan(ablate)
    direct = direct_effect(subject.trace(removed), subject.trace(removed, HARMLESS))
    simulated = difference(subject.projections(ablate))
    assert simulated != pytest.approx(direct.remainder(1.0), abs=1e-3)


def test_what_rules_leave_out_is_what_is_left_when_all_that_they_cover_is_gone(subject: Subject) -> None:
    removed = subject.bench.plan(rules(targets=WRITERS))
    direct = direct_effect(subject.trace(removed), subject.trace(removed, HARMLESS))
    assert direct.left_out == pytest.approx(direct.remainder(1.0), abs=1e-9)
    assert direct.whole == pytest.approx(
        float(subject.trace().stream[:, -1].mean() - subject.trace(prompts=HARMLESS).stream[:, -1].mean())
    )


@pytest.mark.slow
def test_each_scale_is_told_as_it_is_in_a_pass_of_its_own(subject: Subject) -> None:
    found = simulated(subject, RULES)
    removed = subject.bench.plan(RULES)
    direct = direct_effect(subject.trace(removed), subject.trace(removed, HARMLESS))
    assert [row.scale for row in found.scales] == [0.5, 1.0, 2.0]
    assert found.difference == pytest.approx(direct.whole, rel=1e-4, abs=1e-5)
    assert found.left_out == pytest.approx(direct.left_out, rel=1e-4, abs=1e-5)
    for row in found.scales:
        left = difference(subject.projections(times(RULES, row.scale)))
        assert row.direct == pytest.approx(direct.remainder(row.scale), rel=1e-4, abs=1e-5)
        assert row.simulated == pytest.approx(left, rel=1e-4, abs=1e-5)
        assert row.indirect == pytest.approx(left - row.direct, rel=1e-3, abs=1e-4)
        expected = outcome(subject, times(RULES, row.scale)).answers()
        assert row.answers is not None
        assert row.answers.model_dump() == pytest.approx(expected.model_dump(), rel=1e-4, abs=1e-5)
    assert found.current == found.scales[1].answers
    assert Simulation.model_validate_json(found.model_dump_json()) == found


def test_it_is_what_the_written_model_does(subject: Subject, tmp_path: Path) -> None:
    found = simulated(subject, RULES)
    edited = subject.write(RULES, tmp_path)
    for told, model in ((found.projections_before, subject.model), (found.projections_after, edited)):
        for kind, prompts in ((told.harmful, HARMFUL), (told.harmless, HARMLESS)):
            expected = stream(model, prompts)[:, 2].double() @ DIRECTION
            torch.testing.assert_close(torch.tensor(kind, dtype=torch.float64), expected, rtol=1e-4, atol=1e-3)
    assert found.measurement == 2 and found.measurements == [2]


def test_the_tensors_of_the_plan_are_counted(subject: Subject) -> None:
    plan, found = subject.bench.plan(RULES), simulated(subject, RULES).edited
    assert sum(row.tensors for row in found) == len({edit.tensor for edit in plan})
    assert {(row.role, layer) for row in found for layer in row.layers} == {(edit.role, edit.layer) for edit in plan}


def test_the_base_and_the_scales_pass_together(tmp_path: Path) -> None:
    subject = Subject("llama", tmp_path)
    prompts = [[(5 * row + 3 * place) % 60 for place in range(8)] for row in range(80)]
    questions = questions_of(subject.model, prompts[:40], prompts[40:], [1])
    before = questions.passes
    written = Written("answers", prompts[40:43], [[1, 2]] * 3)
    ablate = rules(targets=WRITERS, layers=[2])
    base, directions = subject.bench.base, subject.bench.directions
    found = simulate(base, directions, {}, questions, written, ablate, statistics(), "0" * 64)
    assert before == 1
    # The base is traced; other scales are tried on a quarter of the prompts, where they and what is read go together
    # until the third of four layers.
    read = 3 * 10 / (80 * 8) * (0.5 + 4 * 0.5)
    assert found.passes == pytest.approx(before + 1 + 1 + (0.5 + 2 * 0.5) / 4 + read, abs=0.01)
    assert [row.answers.harmful_prompts for row in found.scales if row.answers is not None] == [10, 40, 10]


@pytest.mark.slow
def test_where_the_rules_are_ruinous_each_third_of_their_layers_is_tried_by_itself(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(current_rules, "RUINOUS", 1e300)
    found = simulated(subject, RULES)
    assert not found.ruinous and found.thirds == []
    monkeypatch.setattr(current_rules, "RUINOUS", 0.0)
    found = simulated(subject, RULES)
    assert found.ruinous
    assert [(part.first, part.last) for part in found.thirds] == [(0, 0), (1, 1), (2, 2)]
    for part in found.thirds:
        alone = rules(targets=WRITERS, layers=[part.first])
        reading = Reading(
            InMemory(subject.model), HARMLESS, ANSWERS, [of_edits(subject.model, subject.bench.plan(alone))]
        )
        reading.run()
        assert part.perplexity == pytest.approx(reading.perplexities()[0], rel=1e-3)


@pytest.mark.slow
def test_a_model_that_is_read_layer_by_layer_is_simulated_alike_in_one_read(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    layered, reads = LayeredModel(read_checkpoint(subject.folder), "float32", cpu), list[int]()
    load = layered._load
    monkeypatch.setattr(layered, "_load", lambda part: reads.append(part) or load(part))  # type: ignore[func-returns-value]
    engine = LayerByLayer(Offloaded(layered, cpu))
    questions = Questions(engine, HARMFUL, HARMLESS, subject.bench.questions.tokens)
    written = Written("answers", HARMLESS, ANSWERS)
    base, directions = subject.bench.base, subject.bench.directions
    found = simulate(base, directions, {}, questions, written, RULES, statistics(), "0" * 64)
    assert [reads.count(layer) for layer in range(layered.frame)] == [1] * layered.frame
    expected = simulated(subject, RULES)
    for one, other in zip(found.scales, expected.scales, strict=True):
        assert one.simulated == pytest.approx(other.simulated, rel=1e-3, abs=1e-3)
        assert one.perplexity == pytest.approx(other.perplexity, rel=1e-3)
        assert one.answers is not None and other.answers is not None
        assert one.answers.model_dump() == pytest.approx(other.answers.model_dump(), rel=1e-3, abs=1e-4)
    assert found.difference == pytest.approx(expected.difference, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("perplexity", "ruins"), [(1.0, False), (2.0, False), (2.01, True), (None, True)])
def test_rules_are_ruinous_from_a_perplexity_on(perplexity: float | None, ruins: bool) -> None:
    assert is_ruinous(perplexity) == ruins


def test_rules_keep_their_scales_beside_each_other(tmp_path: Path) -> None:
    """One of scale 0 exempts what it names, at every scale."""
    subject = Subject("llama", tmp_path)
    given: list[dict[str, Any]] = [
        {"layers": "all", "measurement": 2, "scale": 0.5},
        {"layers": 1, "measurement": 2, "scale": 0},
        {"layers": 3, "measurement": 2, "scale": -1.0},
    ]
    listed = [{**given[0], "layers": [0, 2]}, given[2]]
    exempting, without = (simulated(subject, with_rules(rules(), some)) for some in (given, listed))
    assert exempting.model_copy(update={"ablate": without.ablate}) == without
    removed = subject.bench.plan(with_rules(rules(), listed))
    direct = direct_effect(subject.trace(removed), subject.trace(removed, HARMLESS))
    assert [row.direct for row in without.scales] == pytest.approx([direct.remainder(s) for s in (0.5, 1, 2)])


def test_rules_that_only_move_routers_change_answers_and_no_write(tmp_path: Path) -> None:
    subject = Subject("glm4_moe", tmp_path)
    odds = {layer: numbers(layer, EXPERTS) for layer in routed_experts(subject.model, subject.layout)}
    ablate = Ablate.model_validate({**rules(scale=0).model_dump(mode="json"), "router_bias": {"strength": 3}})
    found = simulated(subject, ablate, odds)
    assert found.current.kl > 1e-6
    assert all(row.answers == found.current and row.direct == found.difference for row in found.scales)


def test_rules_that_the_model_does_not_take_are_an_error_before_any_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Subject("llama", tmp_path)
    monkeypatch.setattr(Questions, "run", lambda *_: pytest.fail("asked"))
    with pytest.raises(StageError, match=r"ablate\.rules\.0\.layers: there is no layer 9"):
        simulated(subject, with_rules(rules(), [{"layers": 9, "measurement": 2}]))


@pytest.mark.parametrize("broken", [2, 1])
def test_logits_that_are_not_finite_are_told_of_a_scale_and_refused_of_the_rules_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    subject, outcomes, scales = Subject("llama", tmp_path), Questions.outcomes, count()

    def spoiled(self: Questions, asked: Asked) -> list[Outcome]:
        # First the rules' own scale, then half of it and twice as much.
        wrong = {1: 0, 2: 2}[broken]
        return [
            replace(each, kl=each.kl * float("nan")) if next(scales) == wrong else each
            for each in outcomes(self, asked)
        ]

    monkeypatch.setattr(Questions, "outcomes", spoiled)
    if broken == 1:  # the rules as they are
        with pytest.raises(StageError, match="NaN or infinite logits; try a smaller scale"):
            simulated(subject, RULES)
        return
    found = simulated(subject, RULES)
    assert [row.answers is None for row in found.scales] == [False, False, True]
    assert found.scales[2].simulated is None and found.scales[2].indirect is None


def test_it_is_about_the_measurement_of_most_edits_or_else_the_longest_direction(tmp_path: Path) -> None:
    bench = Subject("llama", tmp_path).bench

    def found(*given: dict[str, Any]) -> float:
        return main_measurement(bench.plan(with_rules(rules(), given)), statistics())

    assert found({"layers": "0-1", "measurement": 1.5}, {"layers": 2, "measurement": 4}) == 1.5
    assert found({"layers": 0, "measurement": 3}, {"layers": 1, "measurement": 2}) == 3
    assert found({"layers": "1-3", "measurement": "same"}) == 3
