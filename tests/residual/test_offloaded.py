"""A model that is read layer by layer gives what it gives in memory as a whole, bit for bit."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from excise.checkpoint.base_model import read_config
from excise.checkpoint.weights import read_checkpoint
from excise.inference.forward import Batch
from excise.inference.layers import LayeredModel
from excise.inference.loading.models import decoder_layers, load_model
from excise.inference.passes import Offloaded, Passes
from excise.plumbing.errors import StageError
from excise.residual.activations import Activations, collect_activations
from excise.residual.experts import routed_experts
from schemas.families import layouts
from tests.families import FAMILIES, ROUTED, VOCABULARY, make

CPU = torch.device("cpu")


def some_prompts() -> list[list[int]]:
    """Prompts of such lengths that they make batches of several widths, and of several sizes."""
    numbers = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 60, (23,), generator=numbers).tolist()
    return [torch.randint(6, VOCABULARY - 6, (length,), generator=numbers).tolist() for length in lengths]


def see(
    passes: Passes,
    folder: Path,
    batch_size: int = 4,
    position: int = -1,
    advance: Callable[[int], None] = lambda _: None,
) -> Activations:
    experts = routed_experts(passes.model, layouts()[read_config(folder)["model_type"]])
    return collect_activations(passes, experts, some_prompts(), position, batch_size, advance)


def streamed(folder: Path, dtype: str = "float32", rest: torch.device = CPU) -> Offloaded:
    return Offloaded(LayeredModel(read_checkpoint(folder), dtype, CPU), rest)


def same(one: Activations, other: Activations) -> bool:
    return torch.equal(one.stream, other.stream) and (
        one.used.keys() == other.used.keys()
        and all(torch.equal(one.used[layer], other.used[layer]) for layer in one.used)
    )


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A family's name, and its model in one file, in float32."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    make(request.param, folder)
    return request.param, folder


def test_the_stream_and_the_experts_are_those_of_the_whole_model(family: tuple[str, Path]) -> None:
    name, folder = family
    found = see(streamed(folder), folder, position=-3)
    assert same(found, see(Passes(load_model(read_checkpoint(folder), "float32", CPU)), folder, position=-3))
    assert found.stream.isfinite().all() and bool(found.used) == (name in ROUTED)


def test_so_they_are_in_bfloat16_whatever_transformers_keeps_in_float32(family: tuple[str, Path]) -> None:
    _, folder = family
    assert same(
        see(streamed(folder, "bfloat16"), folder),
        see(Passes(load_model(read_checkpoint(folder), "bfloat16", CPU)), folder),
    )


def test_so_they_are_from_shards_of_the_type_that_it_computes_in(family: tuple[str, Path], tmp_path: Path) -> None:
    """Layers lie in several files each, and their tensors are not copied, but for experts."""
    _, folder = family
    whole = load_model(read_checkpoint(folder), "bfloat16", CPU)
    whole.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 8
    assert same(see(streamed(tmp_path, "bfloat16"), tmp_path), see(Passes(whole), tmp_path))


@pytest.fixture(scope="module")
def glm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("glm")
    make("glm4_moe", folder)
    return folder


def test_one_layer_at_a_time_is_in_memory_and_none_afterwards(glm: Path) -> None:
    passes = streamed(glm)
    loaded: list[set[str]] = []

    def watch(_batch: Batch, undo: Any) -> None:
        def note(*_: Any) -> None:
            loaded.append({name.split(".")[2] for name, tensor in parameters(passes) if not tensor.is_meta})

        for layer in decoder_layers(passes.model):
            undo.callback(layer.register_forward_pre_hook(note).remove)

    with torch.inference_mode():
        passes.run(some_prompts(), 8, -1, watch, lambda _: None)
    order = [number for number, before in zip(loaded, [set(), *loaded], strict=False) if number != before]
    assert order == [{"0"}, {"1"}, {"2"}, {"3"}]
    assert all(tensor.is_meta for _, tensor in parameters(passes))


def parameters(passes: Offloaded) -> Iterator[tuple[str, torch.Tensor]]:
    return ((name, tensor) for name, tensor in passes.model.state_dict().items())


def test_nothing_is_said_while_layers_are_loaded(
    glm: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would show a bar for each. Where no model was loaded before, so that nobody has silenced it."""
    monkeypatch.setattr(transformers.utils.logging, "_tqdm_active", True)
    see(streamed(glm), glm)
    assert capfd.readouterr() == ("", "")


def test_a_second_pass_sees_the_same(glm: Path) -> None:
    passes = streamed(glm)
    assert same(see(passes, glm), see(passes, glm))


def test_progress_counts_each_prompt_in_each_layer(glm: Path) -> None:
    counts: list[int] = []
    passes = streamed(glm)
    see(passes, glm, batch_size=8, advance=counts.append)
    assert sum(counts) == passes.steps(23) == 4 * 23 and min(counts) > 0


def state(passes: Offloaded) -> list[Any]:
    """What a pass changes while it runs: hooks, replaced functions, loaded tensors."""
    layers = decoder_layers(passes.model)
    hooks = [(*layer._forward_pre_hooks, *layer._forward_hooks, "forward" in layer.__dict__) for layer in layers]
    return [hooks, [name for name, tensor in parameters(passes) if not tensor.is_meta]]


def ended(threads: set[threading.Thread]) -> bool:
    """Whether these threads end by themselves; transformers does not wait for those that it loads with."""
    for thread in threads:
        thread.join(10)
    return not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("failing", [0, 2])
def test_a_failure_in_a_layer_ends_the_pass_and_leaves_nothing_behind(glm: Path, failing: int) -> None:
    passes = streamed(glm)
    before, threads = state(passes), set(threading.enumerate())
    layer = decoder_layers(passes.model)[failing]

    def fail(*_: Any) -> None:
        raise ArithmeticError("in a hook")

    hook = layer.register_forward_hook(fail)
    with pytest.raises(ArithmeticError, match="in a hook"):
        see(passes, glm)
    hook.remove()
    assert state(passes) == before and ended(set(threading.enumerate()) - threads)
    assert same(see(passes, glm), see(streamed(glm), glm))


def test_a_prompt_that_the_embeddings_do_not_know_leaves_nothing_behind(glm: Path) -> None:
    passes = streamed(glm)
    before, threads = state(passes), set(threading.enumerate())
    with pytest.raises(IndexError):
        collect_activations(passes, {}, [[10**6, 10**6]], -1, 4, lambda _: None)
    assert state(passes) == before and ended(set(threading.enumerate()) - threads)


def limited(layer: nn.Module, most: int) -> None:
    """Have a layer run out of memory after it computed more prompts than that."""

    def refuse(_layer: nn.Module, args: tuple[torch.Tensor, ...], _output: Any) -> None:
        if len(args[0]) > most and not next(layer.parameters()).is_meta:
            raise torch.OutOfMemoryError("CUDA out of memory")

    layer.register_forward_hook(refuse)


def test_where_memory_runs_out_it_starts_again_with_half_the_batch_and_says_so(
    glm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    passes = streamed(glm)
    counts: list[int] = []
    limited(decoder_layers(passes.model)[2], 2)
    found = see(passes, glm, batch_size=5, advance=counts.append)
    assert same(found, see(Passes(load_model(read_checkpoint(glm), "float32", CPU)), glm, batch_size=2))
    assert sum(counts) == passes.steps(23) and min(counts) < 0
    assert capsys.readouterr().err.splitlines() == [
        "Out of memory: starting again with 3 prompts per batch",
        "Out of memory: starting again with 2 prompts per batch",
    ]


def test_no_memory_for_a_single_prompt_is_an_error(glm: Path) -> None:
    passes = streamed(glm)
    limited(decoder_layers(passes.model)[1], 0)
    with pytest.raises(StageError, match="too little memory for a single prompt"):
        see(passes, glm)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_decoder_that_changes_the_stream_between_its_layers_is_refused(glm: Path, in_place: bool) -> None:
    passes = streamed(glm)
    second = decoder_layers(passes.model)[1]

    def between(_layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].mul_(2) if in_place else args[0] * 2, *args[1:])

    second.register_forward_pre_hook(between)
    with pytest.raises(StageError, match=r"^Glm4MoeForCausalLM changes the stream between its layers, .*: off$"):
        see(passes, glm)


def test_numbers_that_are_none_in_the_embeddings_are_passed_on(tmp_path: Path) -> None:
    make("llama", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.embed_tokens.weight"][7] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    prompts = [[7, 8, 9], [8, 9, 10]]
    found = collect_activations(streamed(tmp_path), {}, prompts, -1, 2, lambda _: None).stream
    expected = collect_activations(
        Passes(load_model(read_checkpoint(tmp_path), "float32", CPU)), {}, prompts, -1, 2, lambda _: None
    ).stream
    assert found.isnan().any() and torch.equal(found.nan_to_num(5), expected.nan_to_num(5))
