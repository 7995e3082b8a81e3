"""A model type that no file describes: measured on a twin, named as its files are, proven, and then edited like any."""

import itertools
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.model_types import simulation_error
from excise.checkpoint.weights import SINGLE, read_checkpoint
from excise.discovery.examination import Examined, declare, examine, example
from excise.discovery.proof import SavedTwin, prove
from excise.discovery.stream import NoLayout
from excise.plumbing.errors import StageError
from schemas.model import Layout, Writer
from tests.families import make

UNKNOWN = ("bloom", "falcon_h1", "gpt2", "olmo_hybrid", "seed_oss")
PROMPTS = torch.arange(5, 27).reshape(2, 11)


def examined(model_type: str) -> Examined:
    with example(model_type) as folder:
        checkpoint = read_checkpoint(folder)
        return examine(folder, checkpoint.tensors, checkpoint.files, model_type)


def writers(layout: Layout) -> set[str]:
    variants = itertools.chain.from_iterable(layout.sublayers.values())
    return {writer.weight for variant in variants for writer in variant.writers}


@pytest.mark.parametrize(
    "model_type",
    [pytest.param(name, marks=() if name == "gpt2" else pytest.mark.slow) for name in UNKNOWN],
)
def test_an_unknown_type_is_measured_in_seconds_and_simulated_as_it_is_edited(model_type: str) -> None:
    with example(model_type) as folder:
        checkpoint = read_checkpoint(folder)
        start = time.process_time()
        found = examine(folder, checkpoint.tensors, checkpoint.files, model_type)
        assert time.process_time() - start < 30
        assert found.layout.measured and found.differences is None
        assert simulation_error(folder, found.layout) < 1e-4


HEADERS: dict[str, tuple[Callable[[str], str], set[str]]] = {
    "ministral3": (lambda name: name.removeprefix("model."), {"self_attn.o_proj.weight", "mlp.down_proj.weight"}),
    "phimoe": (
        lambda name: name,
        {"self_attn.o_proj.weight", "block_sparse_moe.experts.{expert}.w2.weight"},
    ),
}
"""By type, how a file may name tensors otherwise, and the writers by these names."""


@pytest.mark.slow
@pytest.mark.parametrize("model_type", HEADERS)
def test_writers_are_named_as_the_files_name_them(model_type: str) -> None:
    rename, expected = HEADERS[model_type]
    with example(model_type) as folder:
        tensors = load_file(folder / SINGLE)
        save_file({rename(name): tensor for name, tensor in tensors.items()}, folder / SINGLE, {"format": "pt"})
        checkpoint = read_checkpoint(folder)
        found = examine(folder, checkpoint.tensors, checkpoint.files, model_type)
    assert writers(found.layout.family) == expected
    assert all(prefix.startswith(("layers.", "model.layers.")) for prefix in found.layout.family.layers)


def test_experts_that_a_file_has_as_one_tensor_are_named_so() -> None:
    """As some repositories have them, while transformers saves each expert by itself."""
    with example("qwen3_moe") as folder:
        split = load_file(folder / SINGLE)
        fused = {name: tensor for name, tensor in split.items() if ".experts." not in name}
        for layer in {match[1] for name in split if (match := re.match(r"(.*\.mlp\.experts\.)0\.", name))}:
            numbers = range(sum(name.startswith(layer) and name.endswith("down_proj.weight") for name in split))
            fused[f"{layer}down_proj"] = torch.stack([split[f"{layer}{n}.down_proj.weight"] for n in numbers])
            gates, ups = (
                torch.stack([split[f"{layer}{n}.{part}_proj.weight"] for n in numbers]) for part in ("gate", "up")
            )
            fused[f"{layer}gate_up_proj"] = torch.cat([gates, ups], dim=1)
        save_file(fused, folder / SINGLE, {"format": "pt"})
        checkpoint = read_checkpoint(folder)
        found = examine(folder, checkpoint.tensors, checkpoint.files, "qwen3_moe")
    assert writers(found.layout.family) == {"self_attn.o_proj.weight", "mlp.experts.down_proj"}
    assert found.differences == []


@pytest.mark.slow
def test_layers_of_multi_token_prediction_are_copied_and_named() -> None:
    with example("deepseek_v32") as folder:
        tensors = load_file(folder / SINGLE)
        last = 1 + max(int(match[1]) for name in tensors if (match := re.match(r"model\.layers\.(\d+)\.", name)))
        extra = {f"model.layers.{last}.eh_proj.weight": torch.zeros(64, 128)}
        save_file(tensors | extra, folder / SINGLE, {"format": "pt"})
        config = folder / "config.json"
        config.write_text(config.read_text().replace("{", '{"num_nextn_predict_layers": 1,', 1))
        checkpoint = read_checkpoint(folder)
        found = examine(folder, checkpoint.tensors, checkpoint.files, "deepseek_v32")
    assert f"model.layers.{last}." in found.copied()


@pytest.mark.parametrize("broken", ["missing writer", "turned axes", "wrong norm"])
def test_a_wrong_layout_is_not_proven(broken: str, tmp_path: Path) -> None:
    make("gemma2", tmp_path / "model")
    checkpoint = read_checkpoint(tmp_path / "model")
    layout = examine(tmp_path / "model", checkpoint.tensors, checkpoint.files, "gemma2").layout
    (variant,) = layout.family.sublayers["feed_forward"]
    (writer,) = variant.writers
    changes = {
        "missing writer": (),
        "turned axes": (writer.model_copy(update={"axes": "in out"}),),
        "wrong norm": (writer.model_copy(update={"norms": (writer.norms[0].model_copy(update={"offset": 0}),)}),),
    }
    wrong: tuple[Writer, ...] = changes[broken]
    others = () if wrong else (writer.weight, writer.norms[0].weight)
    family = layout.family.model_copy(
        update={
            "sublayers": layout.family.sublayers | {"feed_forward": (variant.model_copy(update={"writers": wrong}),)},
            "others": (*layout.family.others, *others),
        }
    )
    twin = SavedTwin(tmp_path / "model", layout.model_copy(update={"family": family}))
    with pytest.raises(NoLayout, match="something else writes"):
        prove(twin, twin, PROMPTS, tmp_path / "work")


@pytest.mark.slow
def test_a_measured_layout_can_be_declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("excise.discovery.examination.FOLDER", tmp_path)
    path = declare(examined("seed_oss").layout.family)
    assert path == tmp_path / "seed_oss.yaml"
    assert "self_attn.o_proj.weight" in path.read_text()
    with pytest.raises(StageError, match="declared in"):
        declare(examined("seed_oss").layout.family)


def test_two_writers_of_one_role_are_traced_apart(tmp_path: Path) -> None:
    """Of Falcon-H1, attention and Mamba both mix tokens. What all writers add is what the stream gains."""
    from excise.discovery.proof import base_of, random_direction
    from excise.inference.loading.models import load_model
    from excise.residual.contributions import Trace, components

    with example("falcon_h1") as folder:
        checkpoint = read_checkpoint(folder)
        layout = examine(folder, checkpoint.tensors, checkpoint.files, "falcon_h1").layout
        model = load_model(checkpoint, "float32", torch.device("cpu"))
        watched = components(model, base_of(folder, layout))
        trace = Trace(model, layout.family, watched, random_direction(64), PROMPTS.tolist()).run()
    added = torch.zeros_like(trace.stream[:, 1:])
    for (layer, _), write in trace.writes.items():
        added[:, layer] += write.projected
    gained = trace.stream[:, 1:] - trace.stream[:, :-1]
    torch.testing.assert_close(added, gained, atol=1e-4, rtol=1e-3)
    assert len(trace.parts) == 3 * layout.layers == len(trace.writes) * 3 // 2
