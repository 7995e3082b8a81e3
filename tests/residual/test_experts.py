"""Which experts a token is given to, against what happens to the stream when an expert is taken away."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from excise.inference.loading.models import decoder_layers
from excise.inference.passes import Passes
from excise.organism.model import make_model, make_tokenizer, vary_norms
from excise.organism.world import make_world
from excise.residual.activations import collect_activations
from excise.residual.experts import RoutedExperts, count_use, routed_experts
from schemas.directions import ExpertUse, LayerExpertUse
from schemas.families import layouts
from tests.families import VOCABULARY, make
from tests.subjects import stream

ORGANISM = "organism"
SPARSE = (
    *("deepseek_v3", "gemma4_text_moe", "glm4_moe", "glm4_moe_lite", "gpt_oss", "granitemoe", "jamba", "lfm2_moe"),
    *("llama4", "llama4_text", "minimax_m2", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe", "qwen3_next"),
    "qwen3_5_moe_text",
)
"""Every family with routed experts."""


def organism(architecture: str) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = make_model(architecture, make_tokenizer(make_world(0)))
    vary_norms(made, 0)
    return made.eval()


@pytest.fixture(scope="module", params=[ORGANISM, *SPARSE])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    if request.param == ORGANISM:
        return organism("glm4_moe")
    folder: Path = tmp_path_factory.mktemp(request.param)
    return make(request.param, folder)


def experts_of(model: PreTrainedModel) -> RoutedExperts:
    return routed_experts(model, layouts()[model.config.get_text_config().model_type])


def some_prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(6, VOCABULARY - 6, (length,), generator=generator).tolist()
        for length in torch.randint(3, 18, (count,), generator=generator).tolist()
    ]


def used(
    model: PreTrainedModel, prompts: list[list[int]], position: int = -1, batch_size: int = 4
) -> dict[int, Tensor]:
    return collect_activations(Passes(model), experts_of(model), prompts, position, batch_size, lambda _: None).used


def after(model: PreTrainedModel, layer: int, prompt: list[int], position: int) -> Tensor:
    """The stream at one token of a prompt by itself, after a layer."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        found.append((output[0] if isinstance(output, tuple) else output)[0, position].clone())

    hook = decoder_layers(model)[layer].register_forward_hook(keep)
    with torch.inference_mode():
        model(input_ids=torch.tensor([prompt]), use_cache=False)
    hook.remove()
    return found[0]


def matters(model: PreTrainedModel, layer: int, expert: int, prompt: list[int], position: int) -> bool:
    """Whether the stream after the layer would be another if the expert wrote nothing."""
    module: Any = experts_of(model)[layer][1]
    before = after(model, layer, prompt, position)
    written = [getattr(module, name).data[expert] for name in ("down_proj", "down_proj_bias") if hasattr(module, name)]
    kept = [each.clone() for each in written]
    for each in written:
        each.zero_()
    without = after(model, layer, prompt, position)
    for each, old in zip(written, kept, strict=True):
        each.copy_(old)
    return not torch.equal(before, without)


@pytest.mark.slow
@pytest.mark.parametrize("position", [-1, pytest.param(-2, marks=pytest.mark.nightly)])
def test_an_expert_is_used_where_the_stream_would_be_another_without_it(model: PreTrainedModel, position: int) -> None:
    prompts = some_prompts(5)
    found = used(model, prompts, position)
    assert found.keys() == experts_of(model).keys() != set()
    for layer, table in found.items():
        for row, prompt in enumerate(prompts):
            expected = [matters(model, layer, expert, prompt, position) for expert in range(table.shape[1])]
            assert table[row].tolist() == expected
            assert sum(expected) == 2  # of every family here


def test_counts_are_those_of_each_prompt_by_itself(model: PreTrainedModel) -> None:
    prompts = some_prompts(13)
    whole = count_use(used(model, prompts, batch_size=13), 8, 5)
    alone = [used(model, [prompt]) for prompt in prompts]
    for row in whole.layers:
        table = torch.cat([each[row.layer] for each in alone])
        assert (row.harmful, row.harmless) == (table[:8].sum(dim=0).tolist(), table[8:].sum(dim=0).tolist())


def test_the_stream_is_what_it_is_without_a_look_at_the_experts(model: PreTrainedModel) -> None:
    prompts = some_prompts(6)
    seen = collect_activations(Passes(model), experts_of(model), prompts, -1, 4, lambda _: None)
    assert torch.equal(seen.stream, stream(model, prompts, -1, 4))


def test_a_batch_that_ran_out_of_memory_is_counted_once(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does so after the last layer, when all routers have been seen."""
    prompts = some_prompts(12)
    expected = used(model, prompts)
    last = decoder_layers(model)[-1]
    forward = last.forward

    def small(*args: Any, **given: Any) -> Any:
        output = forward(*args, **given)
        if len(output[0] if isinstance(output, tuple) else output) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return output

    monkeypatch.setattr(last, "forward", small)
    counts: list[int] = []
    seen = collect_activations(Passes(model), experts_of(model), prompts, -1, 12, counts.append)
    assert max(counts) <= 3 and sum(counts) == 12
    assert all(torch.equal(seen.used[layer], table) for layer, table in expected.items())


def test_the_experts_are_given_back_without_hooks_also_after_a_failure(model: PreTrainedModel) -> None:
    def hooks() -> list[int]:
        return [len(module._forward_pre_hooks) for _, module in experts_of(model).values()]

    before = hooks()
    used(model, some_prompts(2))
    with pytest.raises(IndexError):
        used(model, [[10**6, 10**6]])  # no such token
    assert hooks() == before


def test_a_dense_model_has_no_use_of_experts() -> None:
    dense = organism("llama")
    assert count_use(used(dense, some_prompts(3)), 1, 2) == ExpertUse(harmful_prompts=1, harmless_prompts=2, layers=[])


def test_counts_are_by_side_and_layers_in_their_order() -> None:
    table = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 1, 1]]).bool()
    assert count_use({5: table, 2: ~table}, 2, 1) == ExpertUse(
        harmful_prompts=2,
        harmless_prompts=1,
        layers=[
            LayerExpertUse(layer=2, harmful=[0, 1, 1], harmless=[1, 0, 0]),
            LayerExpertUse(layer=5, harmful=[2, 1, 1], harmless=[0, 1, 1]),
        ],
    )
