"""What a layout says beside who writes and who reads: factors on writes, gates, and how routers choose experts."""

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from excise.discovery.blocks import Block, cut_apart
from excise.discovery.directions import orthogonal_to_norms
from excise.discovery.layout import Found
from excise.discovery.nested import tensors
from excise.discovery.stream import NoLayout, run

_ALIKE = 1e-3
_ROWS = 6
_CERTAIN = 1e6
"""More than any router's score."""
_EQUAL = 2.0
"""Added to all scores, it changes no choice."""
_SLIGHT = 1e-2


@dataclass(frozen=True)
class RouterTraits:
    """How the router of one layer chooses."""

    routed: Literal["input", "output"]
    """What its weights multiply."""
    bias: str | None
    """Parameter or buffer that is added to the scores before the choice, by its complete name."""
    selects_only: bool
    """Whether the weights of the chosen experts come from the scores without it."""


@dataclass(frozen=True)
class Traits:
    """By complete names of parameters in memory."""

    factors: dict[str, float]
    """By writer, what multiplies the output of its module, or of its last norm, before it is added to the stream."""
    before_norms: dict[str, float]
    """By writer, what multiplies the output of its module before its first norm."""
    gates: dict[str, str]
    """By writer, the reader whose one output, through a sigmoid, does this too."""
    routers: dict[str, RouterTraits]
    """By writer of routed experts."""

    def multipliers(self, name: str, layers: int) -> tuple[float, ...]:
        """Of a writer, named in any layer: one, the median, where it is the same in all to their last digits; else by
        layer, and 1 where a layer lacks the writer."""
        alike = _alike(self.factors, name)
        middle = statistics.median(alike.values()) if alike else 1.0
        if all(abs(factor - middle) <= _ALIKE * abs(middle) for factor in alike.values()):
            return (middle,)
        return tuple(alike.get(number, 1.0) for number in range(layers))

    def before_norm(self, name: str) -> float:
        """The same of what multiplies before the norms; the median of all layers."""
        return statistics.median(_alike(self.before_norms, name).values() or [1.0])


def find_traits(model: nn.Module, ids: Tensor, found: Found) -> Traits:
    """Measure them on the model whose layout was found. Raises `NoLayout`: a factor differs between tokens, and no gate
    explains it; or experts are called in an unknown way."""
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    last = {
        name: modules[_owner(each.chain[-1].weight if each.chain else name)]
        for name, (each, _) in found.writers.items()
    }
    single = {
        name: modules[_owner(name)]
        for name, (each, _) in found.readers.items()
        if parameters[name].numel() == parameters[name].shape[each.axis]
    }
    written = {name: (each, modules[_owner(name)]) for name, (each, _) in found.writers.items()}
    first = {name: modules[_owner(each.chain[0].weight)] for name, (each, _) in written.items() if each.chain}
    own = [module for name, (_, module) in written.items() if name in first]
    returning = [*last.values(), *single.values(), *own]
    with _kept(returning, "output") as outputs, _kept([*first.values()], "input") as inputs:
        _, *blocks = cut_apart(model, ids, found.stream)
    factors: dict[str, float] = {}
    before_norms = {
        name: _factor(outputs[written[name][1]], inputs[norm])
        for name, norm in first.items()
        if norm in inputs and written[name][1] in outputs
    }
    gates: dict[str, str] = {}
    for number, block in enumerate(blocks[: len(found.factors)]):
        inside = f"{found.stream.name}.{number}."
        beside = {name: outputs[module] for name, module in single.items() if name.startswith(inside)}
        for name, module in last.items():
            if not name.startswith(inside) or module not in outputs:
                continue
            measured = _factors(block, outputs[module], found.factors[number])
            if measured is None:
                if found.writers[name][1] == "routed_experts":  # of experts whose inputs are multiplied
                    continue
                raise NoLayout(f"what the module of {name} returns is not what is added to the stream")
            rows, values = measured
            opened = {gate: values / torch.sigmoid(output.detach().flatten()[rows]) for gate, output in beside.items()}
            explained = {gate: each for gate, each in {"": values, **opened}.items() if _is_constant(each)}
            if not explained:
                raise NoLayout(f"what {name} writes is multiplied by a factor that differs between tokens")
            gate, constant = next(iter(explained.items()))
            factors[name] = float(constant.median())
            if gate:
                gates[name] = gate
    experts = {
        name: parameters[name].shape[0]
        for name, (_, role) in found.writers.items()
        if role == "routed_experts" and parameters[name].ndim > 2
    }
    routers = {name: _router(model, ids, modules[_owner(name)], count, name) for name, count in experts.items()}
    return Traits(factors, before_norms, gates, routers)


def _alike(factors: Mapping[str, float], name: str) -> dict[int, float]:
    """By layer, those of the writers that are named like this one within their layers."""
    split = {_split(other): factor for other, factor in factors.items()}
    return {number: factor for (number, within), factor in split.items() if within == _split(name)[1]}


def _split(name: str) -> tuple[int, str]:
    """The number of its layer, and its name without it."""
    number = _number(name)
    return int(number[1]), name[: number.start()] + name[number.end() - 1 :]


def _number(name: str) -> re.Match[str]:
    number = re.search(r"\.(\d+)\.", name)
    assert number is not None  # blocks are in a list
    return number


def _owner(parameter: str | None) -> str:
    return (parameter or "").rpartition(".")[0]


@contextmanager
def _kept(modules: Sequence[nn.Module], side: Literal["input", "output"]) -> Iterator[dict[nn.Module, Tensor]]:
    """The first tensor that each module is given, or that it returns, with its gradient, once a pass has ended."""
    kept: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, args: Any, kwargs: Any, *returned: Any) -> None:
        kept[module] = next(tensor for _, tensor in tensors(returned or (args, kwargs)))

    with ExitStack() as undo:
        for module in {*modules}:
            register = module.register_forward_pre_hook if side == "input" else module.register_forward_hook
            undo.callback(register(keep, with_kwargs=True).remove)
        yield kept


def _factor(output: Tensor, given: Tensor) -> float:
    """What an output is multiplied with on its way to what is given; 1 where it does not arrive as it is."""
    if not output.requires_grad or not given.requires_grad or output.numel() != given.numel():
        return 1.0
    noise = torch.randn(given.shape, generator=torch.Generator().manual_seed(5), dtype=given.dtype)
    (gradient,) = torch.autograd.grad((given * noise).sum(), output, retain_graph=True, allow_unused=True)
    if gradient is None:
        return 1.0
    flat, noise = gradient.flatten(), noise.flatten()
    factor = flat @ noise / noise.square().sum()
    return float(factor) if float((flat - factor * noise).norm()) <= _ALIKE * float(flat.norm()) else 1.0


def _factors(block: Block, output: Tensor, passed_on: float) -> tuple[Tensor, Tensor] | None:
    """For some tokens, their rows and what their output is multiplied with; None if it is not added to the stream as it
    is. `passed_on` is what the block multiplies all of the stream by."""
    if output.numel() != block.rows * block.hidden or not output.requires_grad:
        return None
    generator = torch.Generator().manual_seed(2)
    rows, factors = range(0, block.rows, max(1, block.rows // _ROWS)), []
    for row in rows:
        direction = orthogonal_to_norms(block, row, generator)
        along = (block.written()[row].double() * direction).sum()
        (gradient,) = torch.autograd.grad(along, output, retain_graph=True, allow_unused=True)
        if gradient is None:
            return None
        own = gradient.reshape(block.rows, block.hidden)[row].double()
        factor = own @ direction
        if float((own - factor * direction).norm()) > _ALIKE * float(own.norm()):
            return None
        if block.entered is not None:
            (through,) = torch.autograd.grad(
                (output.reshape(block.rows, block.hidden)[row].double() * direction).sum(),
                block.entered,
                retain_graph=True,
                allow_unused=True,
            )
            if through is not None and abs(float(through.reshape(block.rows, -1)[row].double() @ direction)) > 0.01:
                return None  # it passes the stream on itself
        factors.append(factor / passed_on)
    return torch.tensor([*rows]), torch.stack(factors)


def _is_constant(values: Tensor) -> bool:
    return bool((values - values[0]).abs().max() <= _ALIKE * values.abs().max())


def _router(model: nn.Module, ids: Tensor, experts: nn.Module, count: int, name: str) -> RouterTraits:
    chosen, weights, routed = _choice(model, ids, experts, count, name)
    layer = name[: _number(name).end()]
    named = [*model.named_parameters(), *model.named_buffers()]
    for other, tensor in named:
        if tensor.shape != (count,) or not tensor.is_floating_point() or not other.startswith(layer):
            continue
        if all(_certain(model, ids, experts, count, name, tensor, expert) for expert in (0, count - 1)):
            with _changed(tensor, slice(None), _EQUAL):
                alike, _, _ = _choice(model, ids, experts, count, name)
            if not torch.equal(chosen, alike):  # it is no summand of the scores
                continue
            with _changed(tensor, 0, _SLIGHT):
                again, changed, _ = _choice(model, ids, experts, count, name)
            return RouterTraits(routed, other, _are_alike(chosen, again, weights, changed))
    return RouterTraits(routed, None, False)


def _are_alike(chosen: Tensor, again: Tensor, weights: Tensor, changed: Tensor) -> bool:
    """Whether weights of tokens that choose the same experts again are the same, in any order."""
    same = (chosen == again).all(dim=1)
    if weights.shape[0] != len(chosen):  # ``[experts, rows, hidden]``: each expert's inputs
        return torch.equal(weights[:, same], changed[:, same])
    return torch.equal(*(each[same].flatten(1).sort(dim=1).values for each in (weights, changed)))


def _certain(
    model: nn.Module, ids: Tensor, experts: nn.Module, count: int, name: str, tensor: Tensor, expert: int
) -> bool:
    """Whether every token chooses an expert once its element of a tensor is large."""
    with _changed(tensor, expert, _CERTAIN):
        chosen, _, _ = _choice(model, ids, experts, count, name)
    return bool(chosen[:, expert].all())


@contextmanager
def _changed(tensor: Tensor, element: int | slice, added: float) -> Iterator[None]:
    with torch.no_grad():
        before = tensor.clone()
        tensor[element] += added
        try:
            yield
        finally:
            tensor.copy_(before)


@torch.no_grad()
def _choice(
    model: nn.Module, ids: Tensor, experts: nn.Module, count: int, name: str
) -> tuple[Tensor, Tensor, Literal["input", "output"]]:
    """Which experts each token uses, ``[rows, experts]``; their weights; and what these multiply."""
    calls: list[tuple[Any, ...]] = []
    hook = experts.register_forward_pre_hook(lambda _module, args: calls.append(args))
    try:
        run(model, ids)
    finally:
        hook.remove()
    match [tensor for _, tensor in tensors(calls)]:
        case [_, Tensor() as index, Tensor() as weights, *_] if not index.is_floating_point():
            index = index.reshape(ids.numel(), -1)
            if int(index.max()) >= count:
                raise NoLayout("its routers also choose experts without weights, which write what they read")
            return torch.zeros(len(index), count, dtype=torch.bool).scatter_(1, index, True), weights, "output"
        case [Tensor() as inputs] if inputs.numel() % (count * ids.numel()) == 0:
            each = inputs.reshape(count, ids.numel(), -1)
            return each.ne(0).any(dim=-1).T, each, "input"
    raise NoLayout(f"{_owner(name)} is called in a way that does not show which experts a token uses")
