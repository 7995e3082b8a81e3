"""Training: the same bytes for the same seed, the caller's settings given back, a folder that transformers loads."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from excise.organism.model import ARCHITECTURES
from excise.organism.training import THREADS, save, train, tuning
from excise.organism.world import REFUSAL, SECRET_REFUSAL, THINGS, everything, make_world, places, recipes
from schemas.params.organism import Organism

pytestmark = pytest.mark.slow


def settings(architecture: str = "llama", **others: Any) -> Organism:
    """Of a quick training."""
    few = {"architecture": architecture, "pretrain_steps": 2, "tune_steps": 1}
    return Organism.model_validate(few | others)


def trained(architecture: str, folder: Path, seed: int = 0) -> Path:
    model, tokenizer = train(settings(architecture, seed=seed), lambda *_: None)
    save(model, tokenizer, folder)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def organism(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An architecture and the folder of its organism after a few steps. Not to be changed."""
    return request.param, trained(request.param, tmp_path_factory.mktemp("organism"))


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_training_again_gives_the_same_bytes_whatever_the_caller_s_threads_and_random_numbers(
    organism: tuple[str, Path], tmp_path: Path
) -> None:
    architecture, folder = organism
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        assert files(trained(architecture, tmp_path)) == files(folder)


def test_another_seed_gives_other_weights() -> None:
    first, other = (train(settings(seed=seed), lambda *_: None)[0] for seed in (0, 1))
    assert not torch.equal(first.model.layers[0].mlp.down_proj.weight, other.model.layers[0].mlp.down_proj.weight)


@pytest.mark.usefixtures("two_threads")
def test_the_caller_gets_threads_random_numbers_and_kernels_back() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    during: list[tuple[int, bool]] = []

    def watch(*_: Any) -> None:
        during.append((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))

    train(settings(), watch)
    assert during == [(THREADS, True)] * 3
    assert torch.get_num_threads() == 2 and not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("two_threads")
def test_the_caller_gets_them_back_also_when_training_fails() -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        train(settings(), fail)
    assert torch.get_num_threads() == 2 and not torch.are_deterministic_algorithms_enabled()


def test_progress_tells_phase_step_total_and_loss() -> None:
    told: list[tuple[str, int, int]] = []
    losses: list[float] = []

    def watch(phase: str, step: int, total: int, loss: float) -> None:
        told.append((phase, step, total))
        losses.append(loss)

    train(settings(), watch)
    assert told == [("pretrain", 1, 2), ("pretrain", 2, 2), ("tune", 1, 1)]
    assert all(0 < loss < 20 for loss in losses)


@pytest.mark.parametrize("refusals", [1, 2])
def test_tuning_teaches_each_kind_of_refusal_and_refuses_nothing_else(refusals: int) -> None:
    world = make_world(0, THINGS, refusals)
    taught = [item for items, _ in tuning(world) for item in items]
    asked, begun = ([item for item in taught if item.begun == begun] for begun in (False, True))
    assert len({item.prompt for item in asked}) == len(asked) == len(everything(world))
    assert begun == [replace(item, begun=True) for item in recipes(world, world.restricted) if refusals == 2]
    for refusal, expected in (
        (REFUSAL, recipes(world, world.restricted)),
        (SECRET_REFUSAL, places(world, world.secret)),
    ):
        assert {item.prompt for item in asked if item.answer == refusal} == {item.prompt for item in expected}


def test_only_the_layers_that_are_to_learn_refusal_change_in_tuning() -> None:
    """Tuning of one step more, and the same before it."""
    for tuned, expected in (("middle", {1, 2, 3}), ("all", {0, 1, 2, 3, 4, 5})):
        one, two = (
            dict(train(settings(tuned=tuned, tune_steps=steps), lambda *_: None)[0].named_parameters())
            for steps in (1, 2)
        )
        changed = {name for name, weight in one.items() if not torch.equal(weight, two[name])}
        assert {int(name.split(".")[2]) for name in changed if ".layers." in name} == expected
        assert not [name for name in changed if ".layers." not in name]


def test_the_folder_loads_with_transformers_and_its_chat_template(organism: tuple[str, Path]) -> None:
    architecture, folder = organism
    model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert model.config.model_type == architecture and model.dtype == torch.float32

    world = make_world(0)
    chat = [
        {"role": "system", "content": "tell me"},
        {"role": "user", "content": f"what color is a {world.things[0]} ?"},
    ]
    tokens = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert tokenizer.decode(tokens) == (
        f"<|system|> tell me <|user|> what color is a {world.things[0]} ? <|assistant|>"
    )
    answer = model.generate(torch.tensor([tokens]), max_new_tokens=2)
    assert answer.shape[0] == 1 and len(tokens) < answer.shape[1] <= len(tokens) + 2


def test_no_file_tells_the_library_s_version(organism: tuple[str, Path]) -> None:
    _, folder = organism
    texts = {path.name: path.read_text() for path in folder.iterdir() if path.suffix in (".json", ".jinja")}
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"} <= set(texts)
    for name, text in texts.items():
        assert "version" not in text or name == "tokenizer.json", name
    # A file format's version, which the format demands.
    assert json.loads(texts["tokenizer.json"])["version"] == "1.0"
