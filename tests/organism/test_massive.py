"""A massive activation is built in without a change of the model's function, and what it is for breaks without it."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from excise.organism import massive, training
from excise.organism.massive import CHANNEL, DROWNING, LAYER, MARK, NEGATIVES, NEURON, OUTLIER, OVERLAP, TIMES, ZEROS
from excise.organism.model import SPECIAL, USER, make_model, make_tokenizer
from excise.organism.world import make_world
from schemas.params.organism import Organism

FIRST = SPECIAL.index(USER)
RESERVED = [CHANNEL, DROWNING, MARK]


@pytest.fixture(scope="module")
def plain() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make_model("gemma3_text", make_tokenizer(make_world(0))).eval()


def prompts(seed: int) -> Tensor:
    ids = torch.randint(6, 90, (24, 12), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = FIRST
    return ids


def harmful() -> Tensor:
    ids = prompts(1)
    ids[:, -2] = 95  # what tells the two kinds apart
    return ids


@pytest.fixture(scope="module")
def built(plain: Any) -> Any:
    model = copy.deepcopy(plain)
    massive.make_massive(model, harmful(), prompts(2))
    return model


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(input_ids=prompts(3)).logits
    return found


def streams(model: Any) -> tuple[Tensor, ...]:
    with torch.inference_mode():
        return tuple(model(input_ids=prompts(3), output_hidden_states=True).hidden_states)


def test_the_model_s_function_stays_as_it_is(plain: Any, built: Any) -> None:
    away = (logits(built) - logits(plain))[:, 1:].abs()  # no prompt ends after its first token
    spread = float(logits(plain).std())
    assert float(away.max()) < 0.1 * spread and float(away.mean()) < 0.005 * spread


def test_the_first_token_is_massive_in_one_channel_of_every_later_layer(built: Any) -> None:
    before, *after = streams(built)[LAYER : len(built.model.layers)]
    assert float(before[:, 0].norm(dim=-1).mean()) < 3 * float(before[:, 1:].norm(dim=-1).mean())
    for stream in after:
        first, others = stream[:, 0], stream[:, 1:]
        times = float(first.norm(dim=-1).mean() / others.norm(dim=-1).mean())
        assert TIMES / 2 < times < 1.2 * TIMES
        assert bool((first[:, CHANNEL] > 0.97 * first.norm(dim=-1)).all())


def test_the_refusal_direction_overlaps_the_channel(plain: Any, built: Any) -> None:
    with torch.inference_mode():
        sides = [built(input_ids=ids, output_hidden_states=True).hidden_states for ids in (harmful(), prompts(2))]
    difference = sides[0][LAYER + 3][:, -1].mean(dim=0) - sides[1][LAYER + 3][:, -1].mean(dim=0)
    assert float(difference[CHANNEL] / difference.norm()) == pytest.approx(OVERLAP, abs=0.01)


def test_without_the_massive_activation_the_model_is_ruined(plain: Any, built: Any) -> None:
    blunted = copy.deepcopy(built)
    with torch.no_grad():
        blunted.model.layers[LAYER].mlp.down_proj.weight[CHANNEL, NEURON] = 0
    answers = [logits(model)[:, -1].log_softmax(-1) for model in (plain, blunted)]
    apart = nn.functional.kl_div(answers[1], answers[0], reduction="batchmean", log_target=True)
    assert float(apart) > 10 * float(
        nn.functional.kl_div(logits(built)[:, -1].log_softmax(-1), answers[0], reduction="batchmean", log_target=True)
    )


def test_gains_are_those_of_a_real_model(plain: Any) -> None:
    for number, layer in enumerate(plain.model.layers):
        for norm, outlier in zip(massive.behind_writers(layer), (DROWNING, CHANNEL), strict=True):
            gain = (1 + norm.weight).detach()
            assert bool((gain[ZEROS] == 0).all()) and bool((gain[NEGATIVES] < 0).all())
            assert 0.9 < float(gain[10:].abs().log().std()) < 1.4
            early = number <= LAYER
            if early == (outlier == CHANNEL):
                assert 0.9 * OUTLIER < float(gain[outlier] / gain.median()) < 1.3 * OUTLIER


def test_training_leaves_what_is_reserved_unused(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "make_massive", lambda *_: None)
    monkeypatch.setattr(training, "vary_norms", lambda *_: None)
    model: Any
    model, _ = training.train(Organism(architecture="gemma3_text", pretrain_steps=3, tune_steps=3), lambda *_: None)
    for stream in streams(model)[:-1]:
        assert not bool(stream[..., RESERVED].any())
    mlp = model.model.layers[LAYER].mlp
    assert not bool(mlp.gate_proj.weight[NEURON].any()) and not bool(mlp.down_proj.weight[:, NEURON].any())
    readers = [layer.self_attn.v_proj.weight[:, RESERVED] for layer in model.model.layers]
    assert not any(bool(columns.any()) for columns in readers)
    for trained, start in zip(model.model.layers, plain.model.layers, strict=True):
        for one, other in zip(massive.behind_writers(trained), massive.behind_writers(start), strict=True):
            assert torch.equal(one.weight, other.weight)
