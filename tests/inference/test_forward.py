"""The first token's probabilities are those of each prompt alone, and their divergence is numpy's."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from excise.inference.forward import first_token_log_probabilities, kl
from excise.organism.model import ARCHITECTURES, make_model, make_tokenizer
from excise.organism.world import make_world


def log_probabilities(seed: int, scale: float = 3.0) -> Tensor:
    logits = np.random.default_rng(seed).normal(scale=scale, size=(7, 50))
    return torch.log_softmax(torch.from_numpy(logits), dim=-1).float()


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make_model(request.param, make_tokenizer(make_world(0))).eval()


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_each_prompt_s_first_token_is_as_without_the_others(model: Any, batch_size: int) -> None:
    rng = random.Random(0)
    prompts = [[rng.randrange(6, 90) for _ in range(rng.randint(1, 20))] for _ in range(11)]
    counts: list[int] = []
    found = first_token_log_probabilities(model, prompts, batch_size, counts.append)
    with torch.inference_mode():
        alone = [model(input_ids=torch.tensor([prompt])).logits[0, -1] for prompt in prompts]
    torch.testing.assert_close(found, torch.log_softmax(torch.stack(alone), dim=-1), rtol=0, atol=1e-5)
    assert found.dtype == torch.float32 and sum(counts) == len(prompts)


def test_drift_is_each_prompt_s_divergence_of_the_edited_from_the_base() -> None:
    base, edited = log_probabilities(0), log_probabilities(1)
    p, q = base.numpy().astype(np.float64), edited.numpy().astype(np.float64)
    expected = (np.exp(p) * (p - q)).sum(axis=-1)
    assert kl(base, edited).numpy() == pytest.approx(expected, rel=1e-12)
    assert kl(edited, base).numpy() != pytest.approx(expected, rel=1e-2)


def test_a_model_has_no_drift_from_itself() -> None:
    assert not kl(log_probabilities(0), log_probabilities(0)).any()
