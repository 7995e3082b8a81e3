"""Trials that advance together give what each gives in a pass of its own, and cost what they do not share."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from excise.checkpoint.weights import read_checkpoint
from excise.discovery.examination import examine, example
from excise.discovery.proof import WRITERS as WRITING
from excise.discovery.proof import base_of, edits_of, random_direction
from excise.inference.forward import first_token_log_probabilities
from excise.inference.layers import LayeredModel
from excise.inference.loading.models import decoder_layers, load_model
from excise.inference.passes import Offloaded
from excise.residual.contributions import Component, Write, components
from excise.trials.changes import Patched, Trial, of_edits
from excise.trials.engines import Engine, InMemory, LayerByLayer, whole_cost
from excise.trials.growing import Growing
from excise.trials.tree import Job, Sharing, neighbours, sharing
from tests.families import VOCABULARY
from tests.subjects import DIRECTION, HARMFUL, LAYERS, Subject, rules

BEGINNING = [3, 9, 4, 11, 7]
PADDED = [BEGINNING + prompt for prompt in HARMFUL]
ALIKE = [BEGINNING + [(7 * row + 3 * place) % VOCABULARY for place in range(6)] for row in range(5)]
WRITERS = ["attention", "mlp", "routed_experts", "shared_experts", "per_layer_input"]
ONLY_LAYERS = Sharing(layers=True, beginning=0, holds=False)
KEEPS_STATES = ("jamba",)
"""Whose Mamba layers begin anew where several tokens follow others."""


def trials(subject: Subject) -> dict[str, Trial]:
    def edited(method: str = "project", **rule: object) -> Trial:
        return of_edits(subject.model, subject.bench.plan(rules(method, "orthogonal", **({"targets": WRITERS} | rule))))

    def patched(layer: int, most: int) -> Trial:
        watched = tuple(component for component in subject.components if component.layer == layer)[:most]
        return Trial((Patched(layer, most, watched, DIRECTION, patch),))

    def patch(_component: Component, write: Write) -> Tensor:
        return 1.5 + 0.1 * write.projected

    found = {
        "base": Trial(),
        "all writers": edited(),
        "embedding": edited(targets=["embedding"]),
        "one layer": edited(layers=[2]),
        "the same and more": edited(layers=[2, 3]),
        "at another scale": edited(layers=[2, 3], scale=1.3),
        "old column norms": edited(layers=[1, 2], method="preserve_column_norms"),
        "patch of the first layer": patched(0, 9),
        "patch of one writer": patched(0, 1),
        "patch of the last layer": patched(LAYERS - 1, 9),
    }
    if subject.is_routed:
        found["single experts"] = edited(targets=["routed_experts"], experts=[0, 2])
    return found


def job(prompts: list[list[int]], several: Sequence[Trial], shared: Sharing, *, found: Tensor | None = None) -> Job:
    """One whose answers are put into ``[trials, prompts, vocabulary]``."""

    def take(trial: int, rows: list[int], given: Tensor) -> None:
        if found is not None:
            found[trial, rows] = given

    return Job(prompts, several, take, shared)


def together(engine: Engine, prompts: list[list[int]], shared: Sharing, several: Sequence[Trial]) -> Tensor:
    """``[trials, prompts, vocabulary]``."""
    found = torch.full((len(several), len(prompts), VOCABULARY), torch.nan)
    engine.run([job(prompts, several, shared, found=found)], lambda _: None)
    return found


def streamed(subject: Subject) -> LayerByLayer:
    cpu = torch.device("cpu")
    return LayerByLayer(Offloaded(LayeredModel(read_checkpoint(subject.folder), "float32", cpu), cpu), 4)


@pytest.mark.parametrize("prompts", [PADDED, ALIKE], ids=["padded", "alike"])
def test_trials_together_give_what_each_gives_by_itself(subject: Subject, prompts: list[list[int]]) -> None:
    named, model = trials(subject), subject.model
    settings = sharing(model, prompts)
    assert settings == Sharing(True, 0 if subject.name in KEEPS_STATES else len(BEGINNING), holds=True)
    alone = torch.stack(
        [
            first_token_log_probabilities(model, prompts, "auto", lambda _: None, each.watch(model))
            for each in named.values()
        ]
    )
    for shared in (settings, ONLY_LAYERS):
        found = together(InMemory(model, 4), prompts, shared, list(named.values()))
        apart = (found - alone).abs().amax(dim=(1, 2)) / alone.abs().amax(dim=(1, 2))
        assert {name: share for name, share in zip(named, apart.tolist(), strict=True) if not share <= 1e-5} == {}
    base, *others = together(InMemory(model, 4), prompts, settings, list(named.values()))
    assert all(float((other - base).abs().max()) > 1e-4 for other in others)


def test_a_model_that_is_read_layer_by_layer_gives_the_same(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where streams wait in files."""
    monkeypatch.setattr("excise.trials.engines.HELD", 1 << 15)
    engine = streamed(subject)
    of_its_own = Subject.__new__(Subject)
    vars(of_its_own).update(vars(subject), model=engine.model, components=components(engine.model, subject.bench.base))
    settings = engine.sharing(PADDED)
    assert settings == sharing(subject.model, PADDED)
    found = together(engine, PADDED, settings, list(trials(of_its_own).values()))
    whole = together(InMemory(subject.model, 4), PADDED, settings, list(trials(subject).values()))
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5 * float(whole.abs().max()))
    assert all(parameter.is_meta for parameter in engine.model.parameters())


@pytest.mark.slow
def test_few_are_held_at_once_where_memory_is_small(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    several = list(trials(subject).values())
    whole = together(InMemory(subject.model, 4), PADDED, ONLY_LAYERS, several)
    monkeypatch.setattr("excise.trials.engines.HELD", 1)
    monkeypatch.setattr("excise.trials.engines.TOKENS_AT_ONCE", 1)
    single = together(InMemory(subject.model, 4), PADDED, ONLY_LAYERS, several)
    torch.testing.assert_close(single, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("subject", ["llama"], indirect=True)
def test_their_order_is_that_in_which_they_are_given_but_for_what_they_share(subject: Subject) -> None:
    """Were it that of hashes, which differ between processes, rounding would too."""
    names = ["one layer", "embedding", "the same and more", "base", "at another scale", "one layer", "all writers"]
    named = trials(subject)
    several = [named[name] for name in names]
    ordered = neighbours(several, range(len(names)), LAYERS)
    assert [names[number] for number in ordered] == [
        "one layer",
        "one layer",
        "the same and more",
        "embedding",
        "base",
        "at another scale",
        "all writers",
    ]


@pytest.mark.parametrize("subject", ["llama"], indirect=True)
def test_they_cost_what_they_do_not_share(subject: Subject) -> None:
    named, tokens = trials(subject), len(ALIKE[0])
    engine = InMemory(subject.model, 4)

    def passes(*names: str) -> float:
        one = job(ALIKE, [named[name] for name in names], Sharing(True, 0, holds=True))
        told: list[int] = []
        engine.run([one], told.append)
        assert sum(told) == engine.cost([one])
        return sum(told) / whole_cost(subject.model, ALIKE)

    assert passes("base") == 1
    assert passes("base", "base", "base") == 1
    assert passes("base", "one layer") == 1 + 2 / LAYERS
    assert passes("base", "one layer", "the same and more") == 1 + 2 / LAYERS + 1 / LAYERS
    # The tokens before the last one once, and the last one of both from the layer in which they differ.
    patches = ("patch of the first layer", "patch of the last layer")
    assert passes(*patches) == pytest.approx(((tokens - 1) + 2) / tokens)


@pytest.mark.parametrize("subject", ["llama"], indirect=True)
def test_the_common_beginning_is_computed_once(subject: Subject) -> None:
    shared = job(ALIKE, [Trial()], Sharing(True, len(BEGINNING), holds=True))
    rest = sum(map(len, ALIKE)) - len(ALIKE) * len(BEGINNING)
    assert InMemory(subject.model, len(ALIKE)).cost([shared]) == LAYERS * (rest + len(BEGINNING))


@pytest.mark.parametrize("is_read", [False, True], ids=["in memory", "read"])
@pytest.mark.parametrize("subject", ["llama"], indirect=True)
def test_memory_that_runs_out_makes_batches_smaller(
    subject: Subject, is_read: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def engine() -> Engine:
        return streamed(subject) if is_read else InMemory(subject.model, 4)

    whole, through = together(engine(), PADDED, ONLY_LAYERS, [Trial()]), Growing.through

    def too_large(self: Growing, layer: int) -> None:
        if len(self.prompts.rows) > 2 and layer == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        through(self, layer)

    monkeypatch.setattr(Growing, "through", too_large)
    torch.testing.assert_close(together(engine(), PADDED, ONLY_LAYERS, [Trial()]), whole, rtol=1e-4, atol=1e-4)
    assert "Out of memory: starting again with 2 prompts per batch" in capsys.readouterr().err


@pytest.mark.parametrize("subject", ["llama"], indirect=True)
def test_a_layer_s_own_forward_is_given_back(subject: Subject) -> None:
    """accelerate puts one there if a model is on several devices."""
    layers = decoder_layers(subject.model)
    layers[1].forward = own = layers[1].forward
    together(InMemory(subject.model, 4), ALIKE, ONLY_LAYERS, [Trial()])
    assert vars(layers[1])["forward"] is own and "forward" not in vars(layers[0])
    del layers[1].forward


@pytest.mark.parametrize("model_type", ["gpt2", "bloom"])
def test_trials_of_an_unreviewed_type_are_right_or_take_a_pass_each(
    model_type: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """GPT-2's layers are given their cache by position; BLOOM's are not given the stream alone."""
    with example(model_type) as folder:
        checkpoint = read_checkpoint(folder)
        layout = examine(folder, checkpoint.tensors, checkpoint.files, model_type).layout
        model = load_model(checkpoint, "float32", torch.device("cpu"))
        edits = edits_of(base_of(folder, layout), WRITING, random_direction(layout.hidden_size))
        several = [Trial(), of_edits(model, edits), of_edits(model, [edit for edit in edits if edit.layer != 0])]
        settings = sharing(model, ALIKE)
        assert settings.layers is (model_type == "gpt2")
        found = together(InMemory(model, 4), ALIKE, settings, several)
        for trial, answers in zip(several, found, strict=True):
            alone = first_token_log_probabilities(model, ALIKE, "auto", lambda _: None, trial.watch(model))
            torch.testing.assert_close(answers, alone, rtol=0, atol=1e-5 * float(alone.abs().max()))
    said = "BloomForCausalLM cannot be run layer by layer, so each trial takes a pass of its own"
    assert (said in capsys.readouterr().err) is (model_type == "bloom")
