"""Norms that are not all ones, and a model that they leave as it was."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from excise.organism.model import ARCHITECTURES, OFFSETS, READERS, make_model, make_tokenizer, vary_norms
from excise.organism.world import make_world


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make_model(request.param, make_tokenizer(make_world(0))).eval()


def varied(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    changed = copy.deepcopy(model)
    vary_norms(changed, seed)
    return changed


def logits(model: PreTrainedModel) -> Tensor:
    tokens = torch.randint(6, 90, (8, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found: Tensor = model(input_ids=tokens).logits
    return found


def stream_norms(model: PreTrainedModel) -> dict[str, Tensor]:
    """What each norm through which the stream is read multiplies by."""
    architecture = model.config.model_type
    names = (*(f"{norm}.weight" for norm in READERS[architecture]), "model.norm.weight")
    offset = OFFSETS.get(architecture, 0)
    return {name: weight.detach() + offset for name, weight in model.named_parameters() if name.endswith(names)}


def test_varied_norms_leave_the_model_s_function_as_it_is(model: PreTrainedModel) -> None:
    torch.testing.assert_close(logits(varied(model)), logits(model), rtol=0, atol=1e-4)
    assert float(logits(model).std()) > 0.1


def test_every_norm_of_the_stream_is_varied_as_a_real_model_s(model: PreTrainedModel) -> None:
    norms = stream_norms(varied(model))
    assert len(norms) == 2 * 6 + 1
    for name, weight in norms.items():
        # Of 128 samples the deviation itself deviates by 0.03.
        assert 0.38 < float(weight.log().std()) < 0.62, name
    assert len({tuple(weight.tolist()) for weight in norms.values()}) == len(norms)


def test_a_norm_that_a_reader_forgets_shows_in_the_logits(model: PreTrainedModel) -> None:
    changed = varied(model)
    with torch.no_grad():
        norm = changed.model.layers[3].get_submodule(list(READERS[model.config.model_type])[-1])
        norm.weight.fill_(1 - OFFSETS.get(model.config.model_type, 0))
    assert float((logits(changed) - logits(model)).abs().max()) > 1e-2


def test_a_seed_gives_the_same_norms_and_another_seed_others(model: PreTrainedModel) -> None:
    first, again, other = (stream_norms(varied(model, seed))["model.norm.weight"] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_varying_norms_takes_no_random_number_of_the_caller(model: PreTrainedModel) -> None:
    before = torch.get_rng_state()
    varied(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unknown_architecture_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'gpt5' is unknown; known are glm4_moe, llama"):
        make_model("gpt5", make_tokenizer(make_world(0)))
