"""The residual stream, against transformers' own account of it and against prompts measured alone."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from excise.inference.loading.models import decoder, decoder_layers
from excise.organism.model import ARCHITECTURES, make_model, make_tokenizer, vary_norms
from excise.organism.world import make_world
from excise.plumbing.errors import StageError
from tests.subjects import stream


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = make_model(request.param, make_tokenizer(make_world(0)))
    vary_norms(made, 0)
    return made.eval()


def some_prompts(count: int) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(6, 90) for _ in range(rng.randint(2, 18))] for _ in range(count)]


def measure(model: PreTrainedModel, prompts: list[list[int]], position: int = -1, batch_size: int = 4) -> Tensor:
    return stream(model, prompts, position, batch_size)


def hidden_states(model: Any, prompt: list[int]) -> list[Tensor]:
    """What transformers tells of one prompt by itself; its last entry is after the final norm."""
    with torch.inference_mode():
        states = model(input_ids=torch.tensor([prompt]), output_hidden_states=True).hidden_states
    return [state[0] for state in states]


def close(found: Tensor, expected: Tensor) -> None:
    """Equal up to 1e-5 of each stream's length."""
    assert float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max()) <= 1e-5


@pytest.mark.parametrize("position", [-1, -2])
def test_each_measurement_is_the_stream_entering_its_layer(model: PreTrainedModel, position: int) -> None:
    prompts = some_prompts(9)
    taken = measure(model, prompts, position)
    layers = len(decoder_layers(model))
    assert taken.shape == (9, layers + 1, 128) and taken.dtype == torch.float32
    for row, prompt in enumerate(prompts):
        states = hidden_states(model, prompt)
        for measurement in range(layers):
            close(taken[row, measurement], states[measurement][position])


def test_the_last_measurement_is_before_the_final_norm(model: Any) -> None:
    prompt = some_prompts(1)[0]
    last, after_norm = measure(model, [prompt])[0, -1], hidden_states(model, prompt)[-1][-1]
    with torch.inference_mode():
        close(model.model.norm(last), after_norm)
    assert float((last - after_norm).norm()) > 0.1 * float(after_norm.norm())


def test_neither_batches_nor_the_other_prompts_change_a_prompt_s_measurements(model: PreTrainedModel) -> None:
    prompts = some_prompts(13)
    together = measure(model, prompts, batch_size=13)
    for size in (1, 5):
        close(measure(model, prompts, batch_size=size), together)
    close(measure(model, prompts[3:4]), together[3:4])


def test_padding_on_the_other_side_would_give_the_same(model: Any) -> None:
    """As transformers does it for generating: padding on the left, hidden from attention and from positions."""
    prompts = some_prompts(7)
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode():
        states = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            output_hidden_states=True,
        ).hidden_states
    found = measure(model, prompts)
    for measurement in range(len(decoder_layers(model))):
        close(states[measurement][:, -1], found[:, measurement])


def test_rows_come_in_the_order_of_the_prompts(model: PreTrainedModel) -> None:
    prompts = some_prompts(6)
    close(measure(model, prompts[::-1], batch_size=2).flip(0), measure(model, prompts, batch_size=2))


def test_every_prompt_is_counted_once(model: PreTrainedModel) -> None:
    counts: list[int] = []
    stream(model, some_prompts(7), -1, 3, counts.append)
    assert counts == [3, 3, 1]


def test_prompts_of_very_different_lengths_share_no_batch(model: PreTrainedModel) -> None:
    """Padding a short prompt to a long one costs more than a second pass."""
    counts: list[int] = []
    short, long = [[7] * 3, [8] * 10], [[9] * 60, [10] * 64]
    close(stream(model, [*long, *short], -1, 4, counts.append)[0], measure(model, long[:1])[0])
    assert counts == [2, 2]


def hooks(model: PreTrainedModel) -> list[tuple[Any, ...]]:
    return [(*layer._forward_pre_hooks, *layer._forward_hooks) for layer in decoder_layers(model)]


def test_the_model_is_given_back_without_hooks_also_after_a_failure(model: PreTrainedModel) -> None:
    before = hooks(model)  # transformers leaves some of its own
    measure(model, some_prompts(2))
    with pytest.raises(IndexError):
        measure(model, [[10**6, 10**6]])  # no such token
    assert hooks(model) == before


def test_a_prompt_too_short_for_the_position_is_an_error_of_one_line(model: PreTrainedModel) -> None:
    assert measure(model, [[7, 8, 9], [7, 8]], position=-2).shape[0] == 2
    with pytest.raises(StageError, match=r"^params\.yaml: measure\.position: -3 .* of 2 tokens$"):
        measure(model, [[7, 8, 9], [7, 8]], position=-3)


@pytest.mark.parametrize(("batch_size", "left"), [("auto", 3), (8, 4)])
def test_the_batch_is_halved_where_memory_runs_out_and_that_is_said(
    model: PreTrainedModel,
    batch_size: Any,
    left: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompts = some_prompts(20)
    expected = stream(model, prompts, -1, 64)
    stack = decoder(model)
    forward = stack.forward

    def small(*args: Any, **given: Any) -> Any:
        if len(given["input_ids"]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*args, **given)

    monkeypatch.setattr(stack, "forward", small)
    counts: list[int] = []
    found = stream(model, prompts, -1, batch_size, counts.append)
    close(found, expected)
    assert sum(counts) == len(prompts)
    assert f"continuing with {left} prompts per batch" in capsys.readouterr().err


def test_no_memory_for_a_single_prompt_is_an_error(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(decoder(model), "forward", none)
    with pytest.raises(StageError, match="too little memory for a single prompt"):
        stream(model, some_prompts(3), -1, "auto")
