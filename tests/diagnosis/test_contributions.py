"""Every change of the stream is accounted for by what its writers add, in every family that a layout names."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from schemas.artifacts import ModelManifest
from schemas.layout import Writer, layouts
from schemas.params import Ablate
from stages.base.forward import Batch, in_batches, run_decoder
from stages.base.manifest import read_config
from stages.base.weights import read_checkpoint
from stages.diagnosis.contributions import Component, Removal, Source, Trace, components, removals, trace, watch_writes
from stages.edit.checkpoint import read_vector
from stages.edit.directions import Measured
from stages.edit.pairing import make_pairs
from stages.edit.plan import make_plan
from stages.edit.projection import unit_vector
from stages.residual.activations import activations, watch_stream
from stages.residual.experts import chosen, routed_experts
from tests.families import EXPERTS, FAMILIES, HIDDEN, VOCABULARY, make

LAYERS = 4
PROMPTS = [[(7 * row + 3 * place) % VOCABULARY for place in range(3 + row)] for row in range(6)]


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


DIRECTION = unit_vector(numbers(HIDDEN))


class Traced:
    """One family's tiny model, and its writers."""

    def __init__(self, name: str, folder: Path) -> None:
        self.model: PreTrainedModel = make(name, folder)
        self.config = read_config(folder)
        self.layout = layouts()[self.config["model_type"]]
        self.checkpoint = read_checkpoint(folder)
        self.manifest = ModelManifest(
            source="folder",
            model_type=self.config["model_type"],
            dtype="float32",
            layers=self.config["num_hidden_layers"],
            hidden_size=self.config["hidden_size"],
            files=[],
        )
        self.components: list[Component] = components(
            self.model, self.layout, self.manifest, self.config, self.checkpoint.tensors
        )

    def trace(self, removed: dict[Source, list[Removal]] | None = None) -> Trace:
        return trace(self.model, self.layout, self.components, DIRECTION, removed or {}, PROMPTS, lambda _: None)

    def removals(self, through_norm: str = "orthogonal", **rule: object) -> dict[Source, list[Removal]]:
        ablate = Ablate.model_validate(
            {"through_norm": through_norm, "rules": [{"layers": "all", "measurement": 0, **rule}]}
        )
        measured = Measured(DIRECTION.expand(LAYERS + 1, -1), torch.zeros(LAYERS + 1, HIDDEN, dtype=torch.float64))
        plan = make_plan(ablate, self.manifest, self.config, self.checkpoint.tensors, [None] * (LAYERS + 1))
        return removals(plan, make_pairs(plan, ablate, measured, lambda name: read_vector(self.checkpoint, name)))


def run(model: PreTrainedModel, watch: Callable[[Batch, ExitStack], None]) -> None:
    """All prompts through the model, with the hooks that `watch` sets for each batch."""

    def compute(batch: Batch) -> None:
        with ExitStack() as undo:
            watch(batch, undo)
            run_decoder(model, batch)

    with torch.inference_mode():
        in_batches(PROMPTS, "auto", lambda _: None, compute)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Traced:
    return Traced(request.param, tmp_path_factory.mktemp(request.param))


def total(trace: Trace, layer: int, without: Source | None = None) -> Tensor:
    """What all writers of a layer add."""
    writes = [write for source, write in trace.writes.items() if source[0] == layer and source != without]
    return torch.stack([write.projected for write in writes]).sum(0)


def misfit(trace: Trace, layer: int, written: Tensor) -> float:
    """How far what was written is from the change of the stream, relative to what is in it."""
    expected = trace.scales[layer] * (trace.stream[:, layer] + written)
    return float((trace.stream[:, layer + 1] - expected).abs().max() / trace.stream.abs().max())


def test_what_is_written_adds_up_to_the_change_of_the_stream(family: Traced) -> None:
    found = family.trace()
    assert {layer for layer, _ in found.writes} == set(range(LAYERS))
    for layer in range(LAYERS):
        assert misfit(found, layer, total(found, layer)) <= 1e-5
        for source in found.writes:
            if source[0] == layer:  # each counts
                assert misfit(found, layer, total(found, layer, without=source)) > 1e-4


def test_the_traced_stream_is_the_measured_one(family: Traced) -> None:
    measured = activations(family.model, PROMPTS, -1, "auto", lambda _: None).double() @ DIRECTION
    torch.testing.assert_close(family.trace().stream, measured, rtol=1e-5, atol=1e-5)


def test_what_experts_write_adds_up_to_what_their_module_writes(family: Traced) -> None:
    found = family.trace()
    layers = routed_experts(family.model, family.layout)
    assert {source for source in found.writes if source[1] == "routed_experts"} == {
        (layer, "routed_experts") for layer in layers
    }
    for layer, (writer, module) in layers.items():
        used = torch.zeros(len(PROMPTS), EXPERTS, dtype=torch.bool)

        def note(
            batch: Batch, undo: ExitStack, module: nn.Module = module, writer: Writer = writer, used: Tensor = used
        ) -> None:
            def hook(experts: nn.Module, given: tuple[Tensor, ...]) -> None:
                used[batch.rows] = chosen(writer, experts, given, batch)

            undo.callback(module.register_forward_pre_hook(hook).remove)

        run(family.model, note)
        write = found.writes[layer, "routed_experts"]
        assert write.experts is not None
        torch.testing.assert_close(write.experts.projected.sum(1), write.projected, rtol=1e-5, atol=1e-6)
        assert torch.equal(write.experts.projected != 0, used)
        if writer.routed == "output":
            assert torch.equal(write.experts.weights != 0, used)
        else:
            assert write.experts.weights[used].isnan().all()


@pytest.mark.parametrize("through_norm", ["orthogonal", "oblique"])
def test_projecting_all_writers_removes_all_that_they_write(family: Traced, through_norm: str) -> None:
    writers = ["attention", "mlp", "routed_experts", "shared_experts", "per_layer_input"]
    for write in family.trace(family.removals(through_norm, targets=writers)).writes.values():
        torch.testing.assert_close(write.covered, write.projected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(write.removed, write.projected, rtol=1e-9, atol=1e-9)


def test_what_a_rule_leaves_out_is_not_covered(family: Traced) -> None:
    found = family.trace(family.removals(targets=["attention"], layers=[0, 2]))
    for (layer, role), write in found.writes.items():
        covered = role == "attention" and layer in (0, 2)
        assert torch.equal(write.covered, write.projected if covered else torch.zeros(len(PROMPTS)).double())


def test_single_experts_are_covered_singly(family: Traced) -> None:
    if not routed_experts(family.model, family.layout):
        return
    found = family.trace(family.removals(targets=["routed_experts"], experts=[0, 2]))
    for (_, role), write in found.writes.items():
        if role == "routed_experts":
            assert write.experts is not None
            torch.testing.assert_close(write.covered, write.experts.projected[:, [0, 2]].sum(1))
            torch.testing.assert_close(write.removed, write.covered, rtol=1e-9, atol=1e-9)


def test_what_a_watcher_asks_for_is_added_to_the_write(family: Traced) -> None:
    """It is what the stream then holds more of, when no other writer follows."""
    last = family.components[-1]
    after = torch.zeros(len(PROMPTS), dtype=torch.float64)

    def ask(batch: Batch, undo: ExitStack) -> None:
        def keep(measurement: int, stream: Tensor) -> None:
            if measurement == LAYERS:
                after[batch.rows] = batch.at_end(stream).double() @ DIRECTION

        watch_writes([last], DIRECTION, {}, batch, lambda _, write: torch.full_like(write.projected, 2.5), undo)
        watch_stream(family.model, keep, undo)

    run(family.model, ask)
    found = family.trace()
    expected = torch.full_like(after, 2.5 * found.scales[-1])
    torch.testing.assert_close(after - found.stream[:, -1], expected, rtol=1e-4, atol=1e-4)
