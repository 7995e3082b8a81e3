"""Organisms of a known cause: editing that cause alone is enough, and editing any other writer is not."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from excise.checkpoint.weights import read_checkpoint
from excise.diagnosis.explanation import explain
from excise.diagnosis.recommendation import rules_of
from excise.edit.checkpoint import write_edited
from excise.inference.loading.models import load_model
from schemas.params.ablate import EditMethod
from tests.known_causes import CONSTRUCTORS, WRITERS, KnownCause, Trained, construct
from tests.subjects import mean_kl

pytestmark = pytest.mark.nightly

HARMFUL = "organism_harmful"
DRIFT = "harmless_test"
HARMLESS = (DRIFT, "organism_borderline", "organism_facts", "organism_arithmetic")


@pytest.fixture(scope="module", params=CONSTRUCTORS)
def known(request: pytest.FixtureRequest, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> KnownCause:
    """The organism of each known cause. Its model is not to be changed but by `edited`."""
    return construct(request.param, trained, tmp_path_factory.mktemp(request.param))


def test_it_refuses_harmful_prompts_and_nothing_else(known: KnownCause) -> None:
    # Of attention no more can be had on some processors.
    assert known.refused(known.model, HARMFUL) >= (0.9 if known.cause.role == "attention" else 0.95)
    assert known.refused(known.model, *HARMLESS) <= 0.05


def test_nothing_but_the_cause_writes_the_direction(known: KnownCause) -> None:
    plan = known.plan({"targets": [*WRITERS, "embedding"]})
    weights = load_file(known.folder / "model.safetensors")
    written = {}
    for edit in plan:
        weight = weights[edit.tensor].double()
        along = known.constructed @ weight if edit.stream_axis == 0 else weight @ known.constructed
        written[edit.tensor] = float(along.norm() / weight.norm()), known.cause.covers(edit)
    causes = [share for share, is_cause in written.values() if is_cause]
    assert len(causes) == len(known.cause.layers) * len(known.cause.experts or (None,))
    assert min(causes) > 0.05
    assert max(share for share, is_cause in written.values() if not is_cause) < 1e-6


def test_its_own_direction_behind_the_cause_is_the_one_that_was_left_to_it(known: KnownCause) -> None:
    assert float(known.directions.unit[known.cause.measurement] @ known.constructed) > 0.95


def test_editing_the_cause_alone_is_as_good_as_editing_every_writer(known: KnownCause) -> None:
    base = known.first_tokens(known.model, DRIFT)
    with known.edited({}) as model:
        everything = known.refused(model, HARMFUL), mean_kl(base, known.first_tokens(model, DRIFT))
    with known.edited(known.cause.rule()) as model:
        cause = known.refused(model, HARMFUL), mean_kl(base, known.first_tokens(model, DRIFT))
    assert everything[0] <= 0.05 and cause[0] <= 0.05
    assert cause[1] <= everything[1] + 0.05


def test_the_diagnosis_names_the_cause_and_editing_what_it_names_is_enough(known: KnownCause) -> None:
    settings = EditMethod(method="project", through_norm="orthogonal", orthogonalize="none")
    diagnosis = explain(known.bench(), settings, known.statistics(), str)
    named = diagnosis.named
    assert named is not None and diagnosis.measurement is not None
    assert named.role == known.cause.role
    assert set(named.layers) <= set(known.cause.layers)
    assert named.experts == ({} if known.cause.experts is None else {known.cause.layers[0]: list(known.cause.experts)})

    base = known.first_tokens(known.model, DRIFT)
    with known.edited({}) as model:
        everything = mean_kl(base, known.first_tokens(model, DRIFT))
    # What is named has nine tenths of the effect. Attention had to be made several times as large, on some processors
    # so much that the last tenth, if it is of a layer that is not named, still refuses.
    whole = set(named.layers) == set(known.cause.layers)
    with known.edited(*rules_of(named, diagnosis.measurement)) as model:
        assert known.refused(model, HARMFUL) <= (0.05 if whole else 0.65)
        # Organisms differ between processors, which train them otherwise: 0.12 more was seen with AVX2.
        assert not whole or mean_kl(base, known.first_tokens(model, DRIFT)) <= everything + 0.15
    assert diagnosis.recommendation is not None and diagnosis.recommendation.removes
    with known.edited(*diagnosis.recommendation.rules) as model:
        assert known.refused(model, HARMFUL) <= 0.05


def test_editing_every_writer_of_another_role_leaves_the_refusal(known: KnownCause) -> None:
    before = known.refused(known.model, HARMFUL)
    for role in WRITERS:
        if role != known.cause.role:
            with known.edited({"targets": [role]}) as model:
                assert known.refused(model, HARMFUL) >= min(0.9, before - 0.05), role


@pytest.mark.parametrize("known", ["routed_experts"], indirect=True)
def test_editing_one_of_the_two_experts_is_not_enough(known: KnownCause) -> None:
    assert known.cause.experts is not None and len(known.cause.experts) == 2
    for expert in known.cause.experts:
        with known.edited({**known.cause.rule(), "experts": [expert]}) as model:
            assert known.refused(model, HARMFUL) >= 0.9, expert


def test_the_cause_can_be_edited_on_disk(known: KnownCause, tmp_path: Path) -> None:
    plan = known.plan(known.cause.rule())
    write_edited(known.base, tmp_path, plan, [], torch.device("cpu"), lambda _done: None)
    assert known.refused(load_model(read_checkpoint(tmp_path), "auto", torch.device("cpu")), HARMFUL) <= 0.05
