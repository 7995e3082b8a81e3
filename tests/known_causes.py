"""Organisms whose cause of refusal is known, because it was put there: what a diagnosis must be able to name.

Training alone does not concentrate refusal in one writer, so a trained organism's weights are edited until a single
writer (attention, one shared expert, or two routed experts of one layer) is all that writes the refusal direction r:

- *attention*: r is projected out of every other writer, and attention's part of it is made larger until the model
  refuses as it did.
- *experts*: whatever wrote r writes a little of a carrier q instead, a direction that the model hardly uses. In a layer
  behind those that learned to refuse, one hidden unit of the cause reads q and writes r.

Harmful prompts are refused and harmless ones answered, but otherwise these are not meant to be good chat models.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from excise.checkpoint.base_model import BaseModel
from excise.edit.planning.plan import Edit, make_plan
from excise.inference.forward import Batch, first_token_log_probabilities
from excise.inference.loading.models import decoder_layers, load_model
from excise.organism import training
from excise.organism.training import save
from excise.organism.world import REFUSAL, make_world, splits
from excise.prompts.chats import tokenize
from excise.residual.directions import MEAN, Estimate, describe, estimate
from excise.trials.bench import Bench
from excise.trials.questions import questions_of
from excise.trials.simulation import simulated
from schemas.directions import MeasurementStatistics
from schemas.params.ablate import Ablate, Target
from schemas.prompts import ChatFormat, Prompt
from tests.families import base_of
from tests.subjects import stream

WRITERS: tuple[Target, ...] = ("attention", "mlp", "routed_experts", "shared_experts")

ENOUGH = 0.93
"""What share of the harmful prompts that r was measured from attention alone must get refused. Wanting more costs much:
what is made larger is larger on harmless prompts too, and on some processors no size gives more."""

TUNED_LAYERS = training.TUNED_LAYERS[1]
LEARNED = TUNED_LAYERS.stop
"""The measurement behind the layers that learned to refuse: the trained organism's direction is taken there."""

CARRIED = 0.1
"""How much of q is written for each r. So little that the constructed model's own direction is r and hardly q."""

STRENGTH = 2.5
"""How far experts push harmful prompts along r, in terms of how far along it they were. A unit's write goes with the
square of what it reads: with less, the prompts with the smallest reading would not be refused."""

STEEPNESS = 8.0
"""What a unit's gate, and the router's rows, get on the average harmful prompt: enough for SiLU to be its argument
there and next to nothing below 0, and for the sigmoids of two experts to be 1 and of the others 0."""

BATCH = 256


@dataclass(frozen=True)
class Cause:
    """The truth about a constructed organism: what alone writes its refusal direction."""

    role: Target
    layers: tuple[int, ...]
    experts: tuple[int, ...] | None = None
    """Which routed experts; None for other roles."""

    @property
    def measurement(self) -> int:
        """Where the organism's own direction is to be taken: behind the last layer that writes it."""
        return max(self.layers) + 1

    def rule(self) -> dict[str, Any]:
        """The rule that edits the cause and nothing else."""
        experts = {} if self.experts is None else {"experts": list(self.experts)}
        return {"targets": [self.role], "layers": list(self.layers), "measurement": self.measurement, **experts}

    def covers(self, edit: Edit) -> bool:
        """Whether a planned edit is of a tensor of the cause."""
        expert = None if edit.place is None else edit.place.expert
        return edit.role == self.role and edit.layer in self.layers and (self.experts is None or expert in self.experts)


@dataclass(frozen=True)
class Trained:
    """A trained organism, its prompts and what they make of its residual stream."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    prompts: dict[str, list[list[int]]]
    """The tokens of each prompt, by the name of its split (see ``world.splits``)."""
    harmful: Tensor
    """``[prompts, measurements, hidden]``: the stream at the last token of the harmful prompts to measure from."""
    harmless: Tensor
    """The same of the harmless ones."""
    direction: Tensor
    """``[hidden]`` float64: r, the unit direction behind the layers that learned to refuse."""
    refusal_token: int
    """The first token of a refusal; no other answer begins with it."""

    @property
    def push(self) -> float:
        """How far along r harmful prompts are on average, in the units of the stream."""
        return float((self.harmful[:, LEARNED].double() @ self.direction).mean())


Constructor = Callable[[PreTrainedModel, Trained], Cause]
"""Edits a copy of the trained organism in place so that one cause is left, and says which."""


def read_trained(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, seed: int) -> Trained:
    """Measure a trained glm4_moe organism on the prompts of its world."""
    prompts = {
        name: tokenize(
            tokenizer,
            [Prompt(id=item.id, prompt=item.prompt, answer=item.answer, item=item.fact) for item in items],
            ChatFormat(system=None, chat_template_kwargs={}, date="2025-01-01"),
        )
        for name, items in splits(make_world(seed)).items()
    }
    harmful, harmless = _measured_sides(model, prompts)
    direction = estimate(harmful, harmless).unit[LEARNED]
    (refusal_token, *_) = tokenizer(REFUSAL)["input_ids"]
    return Trained(model, tokenizer, prompts, harmful, harmless, direction, refusal_token)


def refused(model: PreTrainedModel, prompts: Sequence[Sequence[int]], refusal_token: int) -> float:
    """The share of prompts whose likeliest answer begins as a refusal does."""
    answers = first_token_log_probabilities(model, prompts, BATCH, lambda _done: None).argmax(dim=-1)
    return float((answers == refusal_token).double().mean())


@torch.no_grad()
def attention(model: PreTrainedModel, trained: Trained) -> Cause:
    """Leave r to the attention of the layers that learned to refuse.

    What attention writes depends on what the layers before it wrote, so how much larger its part of r must be is found
    by trying.

    Raises:
        ValueError: no part is large enough.
    """
    own = [model.model.layers[layer].self_attn.o_proj.weight for layer in TUNED_LAYERS]
    for _, weight in writers(model):
        if all(weight is not kept for kept in own):
            _add(weight, trained.direction, -_along(weight, trained.direction))
    for _ in range(25):
        if refused(model, trained.prompts["harmful_train"], trained.refusal_token) >= ENOUGH:
            return Cause("attention", tuple(TUNED_LAYERS))
        for weight in own:
            _add(weight, trained.direction, 0.1 * _along(weight, trained.direction))
    raise ValueError("attention alone does not make this organism refuse; train it with another seed")


@torch.no_grad()
def shared_experts(model: PreTrainedModel, trained: Trained, layer: int = LEARNED) -> Cause:
    """Leave r to one layer's shared expert, which reads the carrier.

    Args:
        layer: one behind those that learned to refuse, so that it reads all that they carry.
    """
    reading = _carry(model, trained, layer)
    shared = model.model.layers[layer].mlp.shared_experts
    _give_unit(
        shared.gate_proj.weight,
        shared.up_proj.weight,
        shared.down_proj.weight,
        reading,
        STRENGTH * trained.push * trained.direction,
    )
    return Cause("shared_experts", (layer,))


@torch.no_grad()
def routed_experts(
    model: PreTrainedModel, trained: Trained, layer: int = LEARNED, experts: tuple[int, int] = (2, 5)
) -> Cause:
    """Leave r to two routed experts of one layer, which the carrier makes the router choose.

    Args:
        layer: one behind those that learned to refuse, so that they read all that those carry.
    """
    reading = _carry(model, trained, layer)
    sparse = model.model.layers[layer].mlp
    for expert in experts:
        gate, up = sparse.experts.gate_up_proj[expert].chunk(2)
        # The two are chosen together, at weights of a half each: both write all of it for the sum to be all of it.
        _give_unit(gate, up, sparse.experts.down_proj[expert], reading, STRENGTH * trained.push * trained.direction)
    signs = -torch.ones(len(sparse.gate.weight))
    signs[list(experts)] = 1
    sparse.gate.weight.add_(torch.outer(signs, STEEPNESS * reading))
    return Cause("routed_experts", (layer,), experts)


CONSTRUCTORS: dict[Target, Constructor] = {
    "attention": attention,
    "shared_experts": shared_experts,
    "routed_experts": routed_experts,
}
"""How an organism of each known cause is made, by the role of what writes r."""


@dataclass(frozen=True)
class KnownCause:
    """A constructed organism on disk and in memory, with what is known of it and its own directions."""

    cause: Cause
    folder: Path
    model: PreTrainedModel
    prompts: dict[str, list[list[int]]]
    refusal_token: int
    constructed: Tensor
    """``[hidden]`` float64: the direction that was left to the cause."""
    directions: Estimate
    """The constructed model's own: they are close to `constructed` behind the cause and not it."""
    base: BaseModel

    def ablate(self, *rules: dict[str, Any]) -> Ablate:
        """The parameters of an edit with these rules, by default of all layers and with the cause's measurement, along
        the difference of means itself."""
        default = {"layers": "all", "measurement": self.cause.measurement, "scale": 1.0}
        return Ablate.model_validate({"orthogonalize": "none", "rules": [{**default, **rule} for rule in rules]})

    def plan(self, *rules: dict[str, Any]) -> list[Edit]:
        """What these rules do to this organism, with its own directions."""
        return make_plan(self.ablate(*rules), self.base, self.directions)

    @contextlib.contextmanager
    def edited(self, *rules: dict[str, Any]) -> Iterator[PreTrainedModel]:
        """Within the block, the model behaves as if it had been edited by these rules."""
        with simulated(self.model, self.plan(*rules)):
            yield self.model

    def bench(self) -> Bench:
        """What a diagnosis is tried on: every fifth prompt of those that the direction was measured from."""
        questions = questions_of(self.model, self.prompts["harmful_train"][::5], self.prompts["harmless_train"][::5])
        return Bench(self.base, self.directions, questions)

    def statistics(self) -> list[MeasurementStatistics]:
        """What the measure stage would say of its own directions."""
        return describe(self.directions, *_measured_sides(self.model, self.prompts), MEAN).measurements

    def named(self, *names: str) -> list[list[int]]:
        """The tokens of these splits' prompts."""
        return [prompt for name in names for prompt in self.prompts[name]]

    def first_tokens(self, model: PreTrainedModel, *names: str) -> Tensor:
        """``[prompts, vocabulary]``: log-probabilities of the first token that answers the prompts of these splits."""
        return first_token_log_probabilities(model, self.named(*names), BATCH, lambda _done: None)

    def refused(self, model: PreTrainedModel, *names: str) -> float:
        """The share of these splits' prompts that a model refuses, by the first token of its answer."""
        return refused(model, self.named(*names), self.refusal_token)


def construct(role: Target, trained: Trained, folder: Path) -> KnownCause:
    """Make the organism that refuses because of this role, and write it where it can be a `model.source`.

    Args:
        folder: an empty one.
    """
    model = copy.deepcopy(trained.model)
    cause = CONSTRUCTORS[role](model, trained)
    save(model, trained.tokenizer, folder)
    base = base_of(folder)
    loaded = load_model(base.checkpoint, "auto", torch.device("cpu"))
    return KnownCause(
        cause=cause,
        folder=folder,
        model=loaded,
        prompts=trained.prompts,
        refusal_token=trained.refusal_token,
        constructed=trained.direction,
        directions=estimate(*_measured_sides(loaded, trained.prompts)),
        base=base,
    )


def _measured_sides(model: PreTrainedModel, prompts: dict[str, list[list[int]]]) -> tuple[Tensor, Tensor]:
    harmful, harmless = (stream(model, prompts[name], batch_size=BATCH) for name in ("harmful_train", "harmless_train"))
    return harmful, harmless


def writers(model: PreTrainedModel) -> Iterator[tuple[int, Tensor]]:
    """Layer and ``[hidden, inputs]`` weight of all that writes to the stream; the embeddings as layer -1."""
    yield -1, model.model.embed_tokens.weight.T
    layers: Any = decoder_layers(model)
    for number, layer in enumerate(layers):
        yield number, layer.self_attn.o_proj.weight
        if hasattr(layer.mlp, "experts"):
            yield number, layer.mlp.shared_experts.down_proj.weight
            yield from ((number, weight) for weight in layer.mlp.experts.down_proj)
        else:
            yield number, layer.mlp.down_proj.weight


def _along(weight: Tensor, direction: Tensor) -> Tensor:
    """``[inputs]`` float64: how much of a direction a writer ``[hidden, inputs]`` writes for each input."""
    return direction @ weight.double()


def _add(weight: Tensor, direction: Tensor, amounts: Tensor) -> None:
    """Let a writer write so much more of a direction, for each input."""
    weight.copy_(weight.double() + torch.outer(direction, amounts))


def _carry(model: PreTrainedModel, trained: Trained, layer: int) -> Tensor:
    """Let every writer of the layers before this one write a little of a carrier q where it wrote r, and none write r.

    What was along q before is projected out of all writers, so that q holds nothing else.

    Returns:
        ``[hidden]``: a row that reads 1 from the average harmful prompt, for what stands behind the layer's second
        norm.
    """
    carrier = _unused_direction(trained)
    for place, weight in writers(model):
        carried = CARRIED * _along(weight, trained.direction)
        for direction in (trained.direction, carrier):
            _add(weight, direction, -_along(weight, direction))
        if place < layer:
            _add(weight, carrier, carried)
    norm = model.model.layers[layer].post_attention_layernorm
    # The norm multiplies the carrier's channels unevenly; a reader that forgot it would read other things with it.
    row = carrier.to(norm.weight.dtype) / norm.weight
    return row / _last_outputs(model, norm, trained.prompts["harmful_train"]).mv(row).mean()


def _unused_direction(trained: Trained) -> Tensor:
    """The unit vector ``[hidden]`` orthogonal to r along which the stream, wherever measured, lies least."""
    stream = torch.cat([trained.harmful, trained.harmless]).double().flatten(0, 1)
    stream -= torch.outer(stream @ trained.direction, trained.direction)
    moments = stream.T @ stream
    # r itself would now be the least used direction; it is made the most used one.
    moments += moments.trace() * torch.outer(trained.direction, trained.direction)
    return torch.linalg.eigh(moments).eigenvectors[:, 0]


def _last_outputs(model: PreTrainedModel, module: nn.Module, prompts: Sequence[Sequence[int]]) -> Tensor:
    """``[prompts, hidden]``: what a module gives at the last token of each prompt, in an order of its own."""
    outputs: list[Tensor] = []

    def watch(batch: Batch, undo: ExitStack) -> None:
        hook = module.register_forward_hook(lambda _module, _args, output: outputs.append(batch.at_end(output)))
        undo.callback(hook.remove)

    first_token_log_probabilities(model, prompts, BATCH, lambda _done: None, watch)
    return torch.cat(outputs)


def _give_unit(gate: Tensor, up: Tensor, down: Tensor, reading: Tensor, written: Tensor) -> None:
    """Let the hidden unit that matters least write a vector where a row reads 1, and next to nothing where it reads 0.

    Args:
        gate: ``[units, hidden]``, as `up`; `down` is ``[hidden, units]``.
        reading: ``[hidden]``: the row.
        written: ``[hidden]``: what is written; where the row reads x > 0, x² times as much.
    """
    unit = int((gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0)).argmin())
    gate[unit] = STEEPNESS * reading
    up[unit] = reading
    down[:, unit] = written / STEEPNESS
