"""All that is found of one model: by block, who writes to the stream and who reads it, for what, and through what."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from excise.discovery.blocks import cut_apart
from excise.discovery.gains import TOLERANCE
from excise.discovery.measurement import Measured, Read, Written
from excise.discovery.roles import Roles
from excise.discovery.stream import NoLayout, Stream, find_stream
from schemas.model import ReaderRole, WriterRole


@dataclass(frozen=True)
class Found:
    """The layout of a model, by the names of its parameters in memory."""

    stream: Stream
    writers: dict[str, tuple[Written, WriterRole]]
    """Of the blocks."""
    readers: dict[str, tuple[Read, ReaderRole]]
    embeddings: dict[str, Written]
    """What writes to the stream before the first block."""
    factors: tuple[float, ...]
    """By block, what it multiplies the stream by as it passes it on."""

    @property
    def multiplies_stream(self) -> bool:
        return any(abs(factor - 1) > TOLERANCE for factor in self.factors)


def find_layout(model: nn.Module, ids: Tensor) -> Found:
    """Measure a small model in float64, with random weights and gains, on ``[prompts, tokens]``. Raises `NoLayout`: it
    has no stream that edits of weights can clear of a direction, with the measured reason."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    generator = torch.Generator().manual_seed(0)
    stream = find_stream(model, ids)
    frame, *blocks = cut_apart(model, ids, stream)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    writers: dict[str, tuple[Written, WriterRole]] = {}
    readers: dict[str, tuple[Read, ReaderRole]] = {}
    factors = []
    inside: set[str] = set()
    for block in blocks:
        own = {names[id(parameter)]: parameter for parameter in block.module.parameters() if parameter.requires_grad}
        inside |= own.keys()
        measured = Measured(block, own, generator)
        factors.append(measured.factor())
        written = {name: each for name in own if (each := measured.writer(name)) is not None}
        read = {name: gain for name in own if (gain := measured.reader(name, written.get(name))) is not None}
        if not written:
            raise NoLayout(f"none of the tensors of a block writes to the stream, yet it changes in {stream.name}")
        roles = Roles(measured, written, read)
        writers |= {name: (each, _role(name, roles.writers)) for name, each in written.items()}
        readers |= {name: (each, roles.readers[name]) for name, each in read.items()}
    outside = {name: each for name, each in model.named_parameters() if name not in inside and each.requires_grad}
    before = Measured(frame, outside, generator)
    embeddings = {name: found for name in outside if (found := before.writer(name)) is not None}
    return Found(stream, writers, readers, embeddings, tuple(factors))


def _role(name: str, roles: Mapping[str, WriterRole]) -> WriterRole:
    """A bias has the role of the weights of its module, or else of the modules next to it."""
    if name in roles:
        return roles[name]
    path = name.split(".")

    def shared(other: str) -> int:
        """How many modules contain both."""
        return sum(
            1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(path, other.split("."), strict=False))
        )

    nearest = max(roles, key=shared, default=None)
    if nearest is None:
        raise NoLayout(f"{name} writes to the stream of a block in which no weight does")
    return roles[nearest]
