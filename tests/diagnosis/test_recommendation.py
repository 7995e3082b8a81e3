"""The recommendation: the lowest KL of those edits that remove refusal, in words that params.yaml takes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from excise.diagnosis.recommendation import Edits, Tried, recommend, rules_of
from excise.trials.bench import Bench
from excise.trials.questions import Asked
from excise.trials.refusal import Beginnings, Outcome
from schemas.basis.text import layers_as_written, runs
from schemas.diagnosis import NamedWriter
from schemas.params.ablate import Ablate, Rule

WRITERS = ["attention", "mlp", "routed_experts"]


def outcome(refusal: float, kl: float) -> Outcome:
    """So large a share of a hundred harmful prompts is refused for certain, at a KL of this on each harmless prompt."""
    odds = torch.full((100,), -20.0).double()
    odds[: round(100 * refusal)] = 20.0
    harmless = torch.full((10,), -20.0).double()
    drift = torch.full((10,), kl).double()
    return Outcome(Beginnings(odds, odds > 0), Beginnings(harmless, harmless > 0), drift, drift)


class Imagined:
    """A bench with a model of two layers whose answer to each edit is made up."""

    base = SimpleNamespace(layout=SimpleNamespace(layers=2))

    def __init__(self, answer: Callable[[Rule], Outcome | None]) -> None:
        self.answer = answer
        self.asked: list[Ablate] = []
        self.questions = self

    def trial(self, ablate: Ablate) -> Any:
        """The edit itself stands for its trial."""
        self.asked.append(ablate)
        return None if self.answer(ablate.rules[0]) is None else ablate

    def outcomes(self, asked: Asked) -> list[Outcome | None]:
        return [self.answer(ablate.rules[0]) for ablate in cast(list[Ablate], asked.trials)]


NAMED = NamedWriter(role="routed_experts", layers=[1], experts={1: [3]}, effect=-1.0)


def try_edits(bench: Imagined, ablate: Ablate, measurements: Sequence[int]) -> Edits:
    edits = Edits(cast(Bench, bench), ablate, WRITERS, measurements)
    for ask in (edits.ask_ranges, edits.ask_variants, lambda: edits.ask_last(NAMED)):
        ask()
        edits.answered()
    return edits


def recommended(
    answer: Callable[[Rule], Outcome | None], measurements: tuple[int, ...] = (2, 1, 4)
) -> tuple[Tried, list[Tried], Imagined]:
    bench = Imagined(answer)
    edits = try_edits(bench, Ablate(), measurements)
    found = recommend(edits)
    assert found is not None and found.tried == len(edits.tried) and found.ruled_out == 0
    (best,) = (one for one in edits.tried if one.rules == found.rules)
    return best, edits.tried, bench


def test_it_is_the_lowest_kl_of_those_that_remove_refusal() -> None:
    def answer(rule: Rule) -> Outcome:
        if rule.layers == (1,) and rule.measurement == 2:
            return outcome(0.04, 0.3 if rule.targets == tuple(WRITERS) else 0.2)
        return outcome(0.06, 0.01)

    best, _, _ = recommended(answer)
    assert best.outcome.remaining == pytest.approx(0.04, abs=1e-3)
    assert float(best.outcome.kl.mean()) == pytest.approx(0.2)
    assert best.rules[0]["layers"] == 1 and best.rules[0]["measurement"] == 2


def test_prompts_that_are_answered_by_a_hair_s_breadth_are_not_answered() -> None:
    """A share of none refused, at a probability of 0.2, is not refusal removed."""
    odds = torch.full((100,), -1.4).double()
    hair = replace(outcome(0.0, 0.01), harmful=Beginnings(odds, odds > 0))
    best, _, _ = recommended(lambda rule: hair if rule.layers == (0,) else outcome(0.0, 0.1))
    assert best.rules[0]["layers"] != 0 and hair.refusal == 0


def test_edits_that_the_prompts_do_not_tell_from_the_best_are_known() -> None:
    def tried(*kl: float) -> Tried:
        return Tried([], replace(outcome(0.0, 0.1), kl_without=torch.tensor(kl).double()))

    best = tried(0.1, 0.2, 0.3)
    assert tried(0.3, 0.0, 0.4).is_like(best) and not tried(0.4, 0.5, 0.61).is_like(best)


def test_where_none_removes_it_it_is_the_one_that_leaves_least() -> None:
    best, _, _ = recommended(lambda rule: outcome(0.5 if rule.layers == (0,) else 0.7, 0.1))
    assert best.outcome.refusal == 0.5 and not best.outcome.removes and best.rules[0]["layers"] == 0


def test_it_does_not_depend_on_the_current_rules() -> None:
    found = []
    for rules in ([{"layers": 0, "measurement": 7}], [{"layers": "0-1", "measurement": "same", "scale": 0.5}]):
        bench = Imagined(lambda rule: outcome(0.0, 0.1 * rule.scale))
        ablate = Ablate.model_validate({"targets": ["router"], "rules": rules})
        found.append(recommend(try_edits(bench, ablate, [2, 1])))
        assert all(one.rules[0].measurement in (1, 2) and one.rules[0].targets != ("router",) for one in bench.asked)
    assert found[0] is not None and found[0] == found[1]


def test_lower_scales_of_the_best_are_tried() -> None:
    best, _, _ = recommended(lambda rule: outcome(0.0, 0.1 * rule.scale))
    assert best.rules[0]["scale"] == 0.5


def test_there_is_none_where_the_model_takes_no_edit() -> None:
    bench = Imagined(lambda _: None)
    assert recommend(try_edits(bench, Ablate(), [2])) is None and bench.asked


def test_the_named_writer_alone_is_tried() -> None:
    best, _, _ = recommended(lambda rule: outcome(0.0, 0.0 if rule.experts == (3,) else 0.1))
    assert best.rules[0]["experts"] == [3]


def test_the_measurements_that_are_most_the_cause_are_tried_and_no_edit_twice() -> None:
    _, tried, bench = recommended(lambda _: outcome(0.0, 0.1))
    assert {ablate.rules[0].measurement for ablate in bench.asked} == {1, 2, 4}
    assert len(tried) == len({ablate.model_dump_json() for ablate in bench.asked})
    _, _, bench = recommended(lambda _: outcome(0.0, 0.1), (2, 1, 4, 3))
    assert {ablate.rules[0].measurement for ablate in bench.asked} == {1, 2, 4}


def test_what_the_model_cannot_take_is_passed_over() -> None:
    best, tried, bench = recommended(lambda rule: None if rule.layers == (0, 1) else outcome(0.0, 0.1))
    assert best.rules[0]["layers"] in (0, 1) and 0 < len(tried) < len(bench.asked)


@pytest.mark.parametrize(
    ("named", "rules"),
    [
        (
            NamedWriter(role="attention", layers=[1, 2, 3, 5], experts={}, effect=-1.0),
            [{"layers": ["1-3", 5], "measurement": 4, "scale": 1.0, "targets": ["attention"]}],
        ),
        (
            NamedWriter(role="routed_experts", layers=[2, 4], experts={2: [7], 4: [0, 3]}, effect=-1.0),
            [
                {"layers": 2, "measurement": 4, "scale": 1.0, "targets": ["routed_experts"], "experts": [7]},
                {"layers": 4, "measurement": 4, "scale": 1.0, "targets": ["routed_experts"], "experts": [0, 3]},
            ],
        ),
    ],
)
def test_what_is_named_becomes_rules_for_it_alone(named: NamedWriter, rules: list[dict[str, Any]]) -> None:
    assert rules_of(named, 4) == rules
    for rule in rules:
        Rule.model_validate(rule)


def test_layers_are_written_as_params_read_them() -> None:
    for layers in ([3], [0, 1, 2], [0, 2, 3, 7]):
        rule = Rule.model_validate({"layers": layers_as_written(layers), "measurement": 1})
        assert rule.layers == tuple(layers)
    assert runs([]) == []
