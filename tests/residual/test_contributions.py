"""Every change of the stream is accounted for by what its writers add, in every family that a layout names."""

from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn

from excise.inference.forward import Batch, watch_stream
from excise.plumbing.errors import StageError
from excise.residual.contributions import Source, Trace, watch_writes
from excise.residual.experts import chosen, routed_experts
from schemas.model import Writer
from tests.families import EXPERTS, ROUTED
from tests.subjects import DIRECTION, HARMFUL, LAYERS, Subject, rules, run, stream


def total(trace: Trace, layer: int, without: Source | None = None) -> Tensor:
    """What all writers of a layer add."""
    writes = [write for source, write in trace.writes.items() if source[0] == layer and source != without]
    return torch.stack([write.projected for write in writes]).sum(0)


def misfit(trace: Trace, layer: int, written: Tensor) -> float:
    """How far what was written is from the change of the stream, relative to what is in it."""
    expected = trace.scales[layer] * (trace.stream[:, layer] + written)
    return float((trace.stream[:, layer + 1] - expected).abs().max() / trace.stream.abs().max())


def test_what_is_written_adds_up_to_the_change_of_the_stream(subject: Subject) -> None:
    found = subject.trace()
    assert {layer for layer, _ in found.writes} == set(range(LAYERS))
    for layer in range(LAYERS):
        assert misfit(found, layer, total(found, layer)) <= 1e-5
        for source in found.writes:
            if source[0] == layer:  # each counts
                assert misfit(found, layer, total(found, layer, without=source)) > 1e-4


def test_a_layout_that_does_not_account_for_the_stream_is_an_error(subject: Subject) -> None:
    found = subject.trace().check()
    role = max(found.writes, key=lambda source: float(found.writes[source].projected.std()))[1]
    found.parts = {key: write for key, write in found.parts.items() if key[1] != role}
    with pytest.raises(StageError, match=r"none of its known writers adds .*schemas/architectures"):
        found.check()


def test_the_traced_stream_is_the_measured_one(subject: Subject) -> None:
    measured = stream(subject.model, HARMFUL).double() @ DIRECTION
    torch.testing.assert_close(subject.trace().stream, measured, rtol=1e-5, atol=1e-5)


def test_what_experts_write_adds_up_to_what_their_module_writes(subject: Subject) -> None:
    found = subject.trace()
    layers = routed_experts(subject.model, subject.layout)
    assert {source for source in found.writes if source[1] == "routed_experts"} == {
        (layer, "routed_experts") for layer in layers
    }
    for layer, (writer, module) in layers.items():
        used = torch.zeros(len(HARMFUL), EXPERTS, dtype=torch.bool)

        def note(
            batch: Batch, undo: ExitStack, module: nn.Module = module, writer: Writer = writer, used: Tensor = used
        ) -> None:
            def hook(experts: nn.Module, given: tuple[Tensor, ...]) -> None:
                used[batch.rows] = chosen(writer, experts, given, batch)

            undo.callback(module.register_forward_pre_hook(hook).remove)

        run(subject.model, note)
        write = found.writes[layer, "routed_experts"]
        torch.testing.assert_close(write.experts.sum(1), write.projected, rtol=1e-5, atol=1e-6)
        assert torch.equal(write.experts != 0, used)
        if writer.routed == "output":
            assert torch.equal(write.weights != 0, used)
        else:
            assert write.weights[used].isnan().all()


@pytest.mark.parametrize("through_norm", ["orthogonal", "oblique"])
def test_projecting_all_writers_removes_all_that_they_write(subject: Subject, through_norm: str) -> None:
    writers = ["attention", "mlp", "routed_experts", "shared_experts", "per_layer_input"]
    for write in subject.trace(subject.bench.plan(rules(through_norm=through_norm, targets=writers))).writes.values():
        torch.testing.assert_close(write.covered, write.projected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(write.removed, write.projected, rtol=1e-9, atol=1e-9)


def test_what_a_rule_leaves_out_is_not_covered(subject: Subject) -> None:
    found = subject.trace(subject.bench.plan(rules(targets=["attention"], layers=[0, 2])))
    for (layer, role), write in found.writes.items():
        covered = role == "attention" and layer in (0, 2)
        assert torch.equal(write.covered, write.projected if covered else torch.zeros(len(HARMFUL)).double())


@pytest.mark.parametrize("subject", ROUTED, indirect=True)
def test_single_experts_are_covered_singly(subject: Subject) -> None:
    found = subject.trace(subject.bench.plan(rules(targets=["routed_experts"], experts=[0, 2])))
    for (_, role), write in found.writes.items():
        if role == "routed_experts":
            torch.testing.assert_close(write.covered, write.experts[:, [0, 2]].sum(1))
            torch.testing.assert_close(write.removed, write.covered, rtol=1e-9, atol=1e-9)


def test_what_a_watcher_asks_for_is_added_to_the_write(subject: Subject) -> None:
    """It is what the stream then holds more of, when no other writer follows."""
    last = subject.components[-1]
    after = torch.zeros(len(HARMFUL), dtype=torch.float64)

    def ask(batch: Batch, undo: ExitStack) -> None:
        def keep(measurement: int, found: Tensor) -> None:
            if measurement == LAYERS:
                after[batch.rows] = batch.at_end(found).double() @ DIRECTION

        watch_writes([last], DIRECTION, {}, batch, lambda _, write: torch.full_like(write.projected, 2.5), undo)
        watch_stream(subject.model, keep, undo)

    run(subject.model, ask)
    found = subject.trace()
    expected = torch.full_like(after, 2.5 * found.scales[-1])
    torch.testing.assert_close(after - found.stream[:, -1], expected, rtol=1e-4, atol=1e-4)
