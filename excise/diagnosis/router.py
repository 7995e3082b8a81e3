"""Does the router read the direction, and do its weights carry it? Routed layers alone."""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn
from transformers import PreTrainedModel

from excise.diagnosis.contributions import ExpertWrites
from excise.edit.plan import Edit
from excise.edit.projection import Pair
from excise.inference.forward import Batch, in_batches, run_decoder
from excise.inference.models import decoder_layers
from excise.residual.experts import chosen, count, routed_experts
from schemas.layout import Layout, Reader, Writer


@dataclass(frozen=True)
class Routing:
    """What the router of one layer does with one token of each prompt, ``[prompts, experts]`` on the CPU."""

    logits: Tensor
    """float64."""
    through: Tensor
    """What of the logits is due to the direction in the router's input."""
    used: Tensor
    """bool: which experts are chosen."""
    blinded: Tensor
    """The same once the direction is taken out of the router's input, everything else being as it was."""
    is_blinded: bool = True
    """Whether it could be taken out; if not, only what is used is known."""


@torch.inference_mode()
def trace_routers(
    model: PreTrainedModel,
    layout: Layout,
    plan: Sequence[Edit],
    pairs: Sequence[Pair],
    prompts: Sequence[Sequence[int]],
    advance: Callable[[int], None],
) -> dict[int, Routing]:
    """By layer. Each layer runs twice on the same input, the second time with its router blinded to the direction.

    Args:
        plan: edits of the routers, at scale 1; others are ignored. A layer without one runs once.
        pairs: what is taken out by each edit.
        prompts: the tokens of each.
        advance: told the number of prompts done since.
    """
    experts, layers = routed_experts(model, layout), decoder_layers(model)
    blinding = routers(layout, plan, pairs)
    found = {layer: _empty(len(prompts), count(module), layer in blinding) for layer, (_, module) in experts.items()}

    def compute(batch: Batch) -> None:
        with ExitStack() as undo:
            for layer, (writer, module) in experts.items():
                _watch(layers[layer], blinding.get(layer), writer, module, batch, found[layer], undo)
            run_decoder(model, batch)

    in_batches(prompts, "auto", advance, compute)
    return found


def routers(layout: Layout, plan: Sequence[Edit], pairs: Sequence[Pair]) -> dict[int, tuple[Reader, Pair]]:
    """By layer, what chooses experts, and what blinds it. A shared expert's gate is a router that chooses nothing."""
    writers = [writer for variants in layout.sublayers.values() for variant in variants for writer in variant.writers]
    gates = {writer.gate for writer in writers}
    return {
        edit.place.layer: (edit.place.part, pair)
        for edit, pair in zip(plan, pairs, strict=True)
        if edit.place is not None and isinstance(edit.place.part, Reader)
        if edit.place.part.role == "router" and edit.place.part.weight not in gates
    }


def _watch(
    layer: nn.Module,
    blinding: tuple[Reader, Pair] | None,
    writer: Writer,
    experts: nn.Module,
    batch: Batch,
    found: Routing,
    undo: ExitStack,
) -> None:
    blind = False

    def choose(module: nn.Module, args: tuple[Any, ...]) -> None:
        used = chosen(writer, module, args, batch)
        (found.blinded if blind else found.used)[batch.rows] = used

    undo.callback(experts.register_forward_pre_hook(choose).remove)
    if blinding is None:
        return
    reader, pair = blinding

    def read(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        stream: Tensor = args[0]
        left, right = pair.left.to(stream.device), pair.right.to(stream.device)
        if blind:
            exact = stream.double()
            return ((exact - (exact @ left)[..., None] * right).to(stream.dtype), *args[1:])
        seen, weight = batch.at_end(stream).double(), module.get_parameter("weight").double()
        found.logits[batch.rows] = (seen @ weight.T).cpu()
        found.through[batch.rows] = torch.outer(seen @ left, weight @ right).cpu()
        return None

    def again(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        nonlocal blind
        blind = True
        module.forward(*args, **kwargs)
        blind = False

    undo.callback(layer.get_submodule(reader.in_memory).register_forward_pre_hook(read).remove)
    undo.callback(layer.register_forward_hook(again, with_kwargs=True).remove)


def _empty(prompts: int, experts: int, is_blinded: bool) -> Routing:
    numbers = torch.zeros(2, prompts, experts, dtype=torch.float64)
    used, blinded = torch.zeros(2, prompts, experts, dtype=torch.bool)
    return Routing(numbers[0], numbers[1], used, blinded, is_blinded)


def share_through(harmful: Routing, harmless: Routing) -> float | None:
    """Of the difference between the two sides' mean logits, the share that goes through the direction.

    What raises all logits alike chooses nothing and is left out first. 1 is all of it; below 0 the direction pulls the
    other way. None where there is no difference.
    """
    difference = _centred(harmful.logits.mean(0) - harmless.logits.mean(0))
    through = _centred(harmful.through.mean(0) - harmless.through.mean(0))
    square = float(difference @ difference)
    return float(through @ difference) / square if square > 0 else None


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean()


def distance_of_use(harmful: Routing, harmless: Routing) -> float:
    """Jensen-Shannon distance between the two sides' use of experts: 0 the same, 1 no expert in common (base 2)."""
    sides = [side.used.double().sum(0).numpy() for side in (harmful, harmless)]
    distance = float(jensenshannon(*sides, base=2))
    return distance if math.isfinite(distance) else 0.0  # the root of what rounding made negative


def changed_choices(routing: Routing) -> float:
    """The share of chosen experts that are no longer chosen once the router is blinded."""
    return float((routing.used & ~routing.blinded).sum() / routing.used.sum())


@dataclass(frozen=True)
class Split:
    """The difference of what experts write along the direction, ``[experts]`` float64 each."""

    by_weights: Tensor
    """Because they are chosen or weighted otherwise."""
    by_outputs: Tensor
    """Because they write otherwise."""


def split(harmful: ExpertWrites, harmless: ExpertWrites) -> Split:
    """Split the difference between two sides into what weights and what outputs carry; the parts add up to it exactly.

    With w̄ = E[w], 0 where an expert is not chosen, and ȳ = E[w y] / E[w], which is the other side's for an expert that
    one side does not use: Δ = Σ Δw̄ (ȳ₁ + ȳ₂) / 2 + Δȳ (w̄₁ + w̄₂) / 2.

    Args:
        harmful: of the prompts of one side.
        harmless: of the other's, as many as it has.
    """
    weights = [side.weights.mean(0) for side in (harmful, harmless)]
    writes = [side.projected.mean(0) for side in (harmful, harmless)]
    unused = [weight == 0 for weight in weights]
    alone = [torch.where(no, 0.0, write / weight) for no, write, weight in zip(unused, writes, weights, strict=True)]
    outputs = [torch.where(unused[0], alone[1], alone[0]), torch.where(unused[1], alone[0], alone[1])]
    return Split(
        by_weights=(weights[0] - weights[1]) * (outputs[0] + outputs[1]) / 2,
        by_outputs=(outputs[0] - outputs[1]) * (weights[0] + weights[1]) / 2,
    )
