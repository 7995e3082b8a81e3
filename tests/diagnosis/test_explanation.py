"""The whole diagnosis of a tiny model, each table against what it says, computed once more."""

from pathlib import Path

import pytest
import torch

from excise.diagnosis.causes import Patches, ablated, added
from excise.diagnosis.contributions import Trace
from excise.diagnosis.explanation import Projections, answers, explain
from excise.diagnosis.plots import plots
from excise.trials.bench import at_scale, direct_effect, with_rules
from schemas.diagnosis import Answers, Diagnosis
from schemas.directions import MeasurementStatistics
from tests.families import EXPERTS
from tests.subjects import DIRECTION, HARMFUL, HARMLESS, LAYERS, Subject, rules

RULES = rules(targets=["attention", "mlp", "routed_experts", "shared_experts"], layers="0-2")
NORM = 2.5
"""Of the difference of means that is added."""


def statistics() -> list[MeasurementStatistics]:
    numbers = {name: None for name in MeasurementStatistics.model_fields if name not in ("measurement", "warnings")}
    return [
        MeasurementStatistics.model_validate(
            {**numbers, "measurement": place, "norm": NORM, "reason": "nothing" if place == 0 else None, "warnings": []}
        )
        for place in range(LAYERS + 1)
    ]


class Explained:
    """A subject, its diagnosis, and what this is made from."""

    def __init__(self, name: str, folder: Path) -> None:
        self.subject = Subject(name, folder)
        self.found: Diagnosis
        self.projections: Projections
        self.found, self.projections = explain(self.subject.bench, RULES, statistics(), str, lambda _: None)
        removed = self.subject.removals(RULES)
        self.harmful: Trace = self.subject.trace(removed)
        self.harmless: Trace = self.subject.trace(removed, HARMLESS)


@pytest.fixture(scope="module", params=["llama", "glm4_moe", "gemma4_text_moe", "llama4_text", "qwen2_moe"])
def explained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Explained:
    return Explained(request.param, tmp_path_factory.mktemp(request.param))


def same(found: Answers | None, expected: Answers) -> None:
    assert found is not None
    assert found.model_dump() == pytest.approx(expected.model_dump(), rel=1e-4, abs=1e-5)


def test_it_is_the_same_after_it_was_written_and_read(explained: Explained) -> None:
    assert Diagnosis.model_validate_json(explained.found.model_dump_json()) == explained.found


def test_it_is_about_the_rules_direction_and_the_prompts_given(explained: Explained) -> None:
    found = explained.found
    assert found.measurement == 2 and found.harmful_prompts == len(HARMFUL) and found.harmless_prompts == len(HARMLESS)
    same(found.current, answers(explained.subject.bench.outcome(RULES)))
    assert found.base.kl == 0


def test_causes_are_each_measurement_s(explained: Explained) -> None:
    questions = explained.subject.bench.questions
    assert explained.found.causes[0].reason == "nothing" and explained.found.causes[0].ablated is None
    for row in explained.found.causes[1:]:
        same(row.ablated, answers(ablated(questions, explained.subject.components, DIRECTION)))
        same(row.added, answers(added(questions, row.measurement, NORM * DIRECTION)))


def test_writers_and_kinds_add_up_to_the_stream(explained: Explained) -> None:
    found = explained.found
    entering = found.stream[0].difference
    reaching = sum(row.difference for row in found.roles)
    scales = torch.tensor(found.layer_scales).prod().item()
    assert entering * scales + reaching == pytest.approx(found.stream[-1].difference, rel=1e-4, abs=1e-4)
    patches = Patches(explained.subject.bench.questions, explained.subject.components, DIRECTION, explained.harmless)
    for row in found.writers:
        write = explained.harmful.writes[row.layer, row.role].projected.mean()  # type: ignore[index]
        assert row.harmful == pytest.approx(float(write), rel=1e-5, abs=1e-6)
        assert row.effect == pytest.approx(patches.effect([(row.layer, row.role, None)]), abs=1e-4)  # type: ignore[list-item]
    assert found.named.role == min(found.roles, key=lambda row: row.effect).role


def test_routed_layers_are_told_and_no_others(explained: Explained) -> None:
    layers = [row.layer for row in explained.found.writers if row.role == "routed_experts"]
    found = explained.found
    assert [row.layer for row in found.routers] == [row.layer for row in found.weights] == layers
    assert len(found.experts) == EXPERTS * len(layers)
    for row, weights in zip(found.routers, found.weights, strict=True):
        assert sum(row.harmful_use) == 2 * len(HARMFUL) and len(row.log_odds) == EXPERTS
        experts = [one.difference for one in found.experts if one.layer == row.layer]
        assert sum(experts) == pytest.approx(weights.difference, rel=1e-4, abs=1e-5)
        if explained.subject.name == "llama4_text":
            assert weights.by_weights is None and weights.by_outputs is None
        else:
            assert weights.by_weights is not None and weights.by_outputs is not None
            assert weights.by_weights + weights.by_outputs == pytest.approx(weights.difference, rel=1e-4, abs=1e-5)
            assert abs(weights.by_weights) > 1e-9


def test_ranges_are_edits_of_these_layers_alone(explained: Explained) -> None:
    bench = explained.subject.bench
    assert len(explained.found.ranges) == 10
    for row in explained.found.ranges[::3]:
        rule = {
            "layers": f"{row.first}-{row.last}",
            "measurement": 2,
            "targets": list(RULES.targets_of(RULES.rules[0])),
        }
        same(row.answers, answers(bench.outcome(with_rules(RULES, [rule]))))
        written = [one.difference for one in explained.found.writers if row.first <= one.layer <= row.last]
        assert row.written == pytest.approx(sum(written))


def test_scales_are_direct_and_simulated(explained: Explained) -> None:
    bench, found = explained.subject.bench, explained.found
    direct = direct_effect(explained.harmful, explained.harmless)
    assert [row.scale for row in found.scales] == [number / 4 for number in range(9)]
    assert found.left_out == pytest.approx(direct.left_out, rel=1e-4, abs=1e-5)
    for row in found.scales[::4]:
        assert row.direct == pytest.approx(direct.remainder(row.scale), rel=1e-4, abs=1e-5)
        sides = bench.projections(at_scale(RULES, row.scale), DIRECTION)
        simulated = float(sides[0][:, -1].mean() - sides[1][:, -1].mean())
        assert row.simulated == pytest.approx(simulated, rel=1e-4, abs=1e-5)
        assert row.indirect == pytest.approx(simulated - row.direct, rel=1e-3, abs=1e-4)
        same(row.answers, answers(bench.outcome(at_scale(RULES, row.scale))))


def test_the_recommended_rules_do_what_is_said_of_them(explained: Explained) -> None:
    recommendation = explained.found.recommendation
    outcome = explained.subject.bench.outcome(with_rules(RULES, recommendation.rules))
    same(recommendation.answers, answers(outcome))
    assert recommendation.removes == (outcome.remaining <= 0.05)
    assert recommendation.alike < recommendation.tried


def test_plots_show_the_same_numbers(explained: Explained) -> None:
    drawn = plots(explained.found, explained.projections)
    assert [row["effect"] for row in drawn["writers"]] == [row.effect for row in explained.found.writers]
    assert len(drawn["projections"]) == 2 * (len(HARMFUL) + len(HARMLESS))
    before = [
        row["projection"] for row in drawn["projections"] if (row["model"], row["prompts"]) == ("base", "harmful")
    ]
    assert before == explained.harmful.stream[:, 2].tolist()
    after = [row["projection"] for row in drawn["projections"] if row["model"] == "edited"]
    sides = explained.subject.bench.projections(RULES, DIRECTION)
    assert after == pytest.approx(torch.cat([side[:, 2] for side in sides]).tolist(), rel=1e-4, abs=1e-5)
    assert bool(drawn["experts"]) == explained.subject.is_routed
