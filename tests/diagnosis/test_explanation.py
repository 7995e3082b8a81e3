"""The whole diagnosis of a tiny model, each table against what it says, computed once more."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from excise.checkpoint.weights import read_checkpoint
from excise.diagnosis.causes import Patches, ablating, adding
from excise.diagnosis.explanation import explain
from excise.inference.layers import LayeredModel
from excise.inference.passes import Offloaded
from excise.plumbing.errors import StageError
from excise.residual.contributions import Trace
from excise.trials.bench import with_rules
from excise.trials.engines import LayerByLayer
from excise.trials.questions import Questions
from schemas.diagnosis import Answers, Diagnosis
from schemas.params.ablate import EditMethod
from tests.families import EXPERTS
from tests.subjects import DIRECTION, HARMFUL, HARMLESS, NORM, Subject, ask, outcome, rules, statistics

CPU = torch.device("cpu")
SETTINGS = EditMethod(method="project", through_norm="orthogonal", orthogonalize="none")


class Explained:
    """A subject, its diagnosis, and what this is made from."""

    def __init__(self, name: str, folder: Path) -> None:
        self.subject = Subject(name, folder)
        self.found: Diagnosis = explain(self.subject.bench, SETTINGS, statistics(), str)
        self.harmful: Trace = self.subject.trace()
        self.harmless: Trace = self.subject.trace(prompts=HARMLESS)


@pytest.fixture(scope="module", params=["llama", "glm4_moe", "gemma4_text_moe", "llama4_text", "qwen2_moe"])
def explained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Explained:
    return Explained(request.param, tmp_path_factory.mktemp(request.param))


def same(found: Answers | None, expected: Answers) -> None:
    assert found is not None
    assert found.model_dump() == pytest.approx(expected.model_dump(), rel=1e-4, abs=1e-5)


def test_it_is_the_same_after_it_was_written_and_read(explained: Explained) -> None:
    assert Diagnosis.model_validate_json(explained.found.model_dump_json()) == explained.found


def test_it_is_about_the_direction_without_which_least_is_refused_and_the_prompts_given(explained: Explained) -> None:
    found = explained.found
    assert found.harmful_prompts == len(HARMFUL) and found.harmless_prompts == len(HARMLESS)
    assert found.base.kl == 0
    left = {row.measurement: row.ablated for row in found.causes if row.ablated is not None}
    assert found.measurement is not None
    removing = [answers for answers in left.values() if answers.remaining <= found.limit]
    if removing:
        least = min(answers.kl_without_refusal for answers in removing)
        assert left[found.measurement].kl_without_refusal == pytest.approx(least, abs=1e-6)
    else:
        least = min(answers.probability for answers in left.values())
        assert left[found.measurement].probability == pytest.approx(least, abs=1e-6)


def test_causes_are_each_measurement_s(explained: Explained) -> None:
    questions = explained.subject.bench.questions
    assert explained.found.causes[0].reason == "nothing" and explained.found.causes[0].ablated is None
    for row in explained.found.causes[1:]:
        model = explained.subject.model
        same(
            row.ablated, ask(questions, ablating(model, explained.subject.components, DIRECTION).watch(model)).answers()
        )
        with_it = ask(questions, adding(model, row.measurement, NORM * DIRECTION).watch(model)).harmless.added()
        assert row.added is not None
        assert row.added.model_dump() == pytest.approx(with_it.model_dump(), rel=1e-4, abs=1e-5)


def test_writers_and_kinds_add_up_to_the_stream(explained: Explained) -> None:
    found = explained.found
    entering = found.stream[0].difference
    reaching = sum(row.difference for row in found.roles)
    scales = torch.tensor(found.layer_scales).prod().item()
    assert entering * scales + reaching == pytest.approx(found.stream[-1].difference, rel=1e-4, abs=1e-4)
    questions, watched = explained.subject.bench.questions, explained.subject.components
    patches = Patches(questions, watched, DIRECTION, explained.harmless)
    questions.run("Patches", [patches.ask([site] for site in patches.sites)])
    patches.answered()
    for row in found.writers:
        write = explained.harmful.writes[row.layer, row.role].projected.mean()  # type: ignore[index]
        assert row.harmful == pytest.approx(float(write), rel=1e-5, abs=1e-6)
        assert row.effect == pytest.approx(patches.effect([(row.layer, row.role, None)]), abs=1e-4)  # type: ignore[list-item]
    assert found.named is not None and found.named.role == min(found.roles, key=lambda row: row.effect).role


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


def test_ranges_are_edits_of_all_writers_of_these_layers_only(explained: Explained) -> None:
    found = explained.found
    assert len(found.ranges) == 10
    for row in found.ranges[::3]:
        rule = {
            "layers": f"{row.first}-{row.last}",
            "measurement": found.measurement,
            "targets": [role.role for role in found.roles],
        }
        same(row.answers, outcome(explained.subject, with_rules(rules(), [rule])).answers())
        written = [one.difference for one in found.writers if row.first <= one.layer <= row.last]
        assert row.written == pytest.approx(sum(written))


def test_the_recommended_rules_do_what_is_said_of_them(explained: Explained) -> None:
    recommendation = explained.found.recommendation
    assert recommendation is not None
    edited = outcome(explained.subject, with_rules(rules(), recommendation.rules))
    same(recommendation.answers, edited.answers())
    assert recommendation.removes == (edited.remaining <= explained.found.limit)
    assert recommendation.alike < recommendation.tried


def test_a_model_that_takes_no_oblique_edit_is_explained_all_the_same(tmp_path: Path) -> None:
    """Gains of zero let nothing through, and tiny ones would multiply errors."""
    subject = Subject("gemma2", tmp_path)
    for name, tensor in subject.bench.base.tensors.items():
        if "post_" in name and name.endswith("layernorm.weight"):
            with open(tmp_path / tensor.file, "r+b") as file:
                file.seek(tensor.start)
                file.write(torch.tensor([-1 + 1e-6]).numpy().tobytes())  # g is one plus it
    settings = SETTINGS.model_copy(update={"through_norm": "oblique"})
    found = explain(subject.bench, settings, statistics(), str)
    assert found.recommendation is None
    assert all(row.answers is None for row in found.ranges)
    assert found.writers and found.named is not None and found.named.role in {row.role for row in found.roles}
    assert Diagnosis.model_validate_json(found.model_dump_json()) == found


def test_a_direction_along_the_harmless_mean_is_passed_over_where_that_is_taken_out(explained: Explained) -> None:
    bench, found = explained.subject.bench, explained.found
    means = bench.directions.harmless_mean.clone()
    means[found.measurement] = 3 * DIRECTION
    spoiled = replace(bench, directions=replace(bench.directions, harmless_mean=means))
    settings = SETTINGS.model_copy(update={"orthogonalize": "source"})
    other = explain(spoiled, settings, statistics(), str)
    assert other.measurement != found.measurement
    none = replace(bench, directions=replace(bench.directions, reasons=("the same activations",) * 5))
    with pytest.raises(StageError, match=r"no measurement has a direction .*the same activations"):
        explain(none, SETTINGS, statistics(), str)


def test_a_model_that_is_read_layer_by_layer_is_explained_alike_in_four_reads(
    explained: Explained, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, known = explained.subject, explained.subject.bench.questions
    layered, reads = LayeredModel(read_checkpoint(subject.folder), "float32", CPU), list[int]()
    load = layered._load
    monkeypatch.setattr(layered, "_load", lambda part: reads.append(part) or load(part))  # type: ignore[func-returns-value]
    engine = LayerByLayer(Offloaded(layered, CPU))
    questions = Questions(engine, known.harmful, known.harmless, known.tokens)
    found = explain(replace(subject.bench, questions=questions), SETTINGS, statistics(), str)
    assert [reads.count(layer) for layer in range(layered.frame)] == [4] * layered.frame
    expected, other = explained.found.model_dump(), found.model_dump()
    assert other.pop("passes") > 0 and expected.pop("passes") > 0
    # Rounding decides between equals.
    for document in (expected, other):
        document["recommendation"] = document["recommendation"]["answers"]["kl_without_refusal"]
    compare(other, expected)


def compare(found: object, expected: object) -> None:
    """Two documents, but for rounding."""
    if isinstance(expected, dict):
        assert isinstance(found, dict) and found.keys() == expected.keys()
        for key in expected:
            compare(found[key], expected[key])
    elif isinstance(expected, list):
        assert isinstance(found, list) and len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            compare(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)
    else:
        assert found == expected
