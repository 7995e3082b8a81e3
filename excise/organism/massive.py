"""A massive activation of the first token (Sun et al. 2024, "Massive Activations in Large Language Models"), built into
channels that training does not touch, because an organism trains for too few steps to learn one. An early MLP writes it
through an outlier gain. The norm that reads the stream then shrinks the rest of the first token, and attention takes
none of it. Without the massive activation attention does, and a second outlier gain drowns every other token in it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

CHANNEL, OUTLIER, ELSEWHERE = 17, 100.0, 10.0
"""The massive activation's channel, and its gain over the median: behind MLPs until one writes it, and elsewhere."""
DROWNING = 18
"""The channel of the outlier gain behind the attention of later layers."""
MARK = 0
"""The channel in which the first token's embedding differs from all others. The gain behind writers is 0 in it."""
ZEROS, NEGATIVES = range(4), range(4, 10)
"""Channels whose gain behind writers is 0 or negative, as some are in real models."""
LAYER, NEURON = 1, 0
"""The layer and the neuron of its MLP that write the massive activation; the neuron has no other use."""
VALUE = 0
"""The dimension of values, in later layers, in which the first token holds what attention must not take."""
TIMES = 9.0
"""Average length of the first token's stream with the massive activation, as a multiple of other tokens'."""
OVERLAP = 0.36
"""Cosine of the refusal direction with the massive activation's channel."""
SILENCED = 10.0
"""The first token's value without the massive activation, in root mean squares of attention's output."""


def reserve(model: Any) -> None:
    """Make gains behind writers as uneven as a real model's, and clear what the massive activation needs; in place.
    What is 0 on both sides of a product has no gradient, so training leaves it at 0."""
    channels = [CHANNEL, DROWNING, MARK]
    with torch.no_grad():
        model.model.embed_tokens.weight[:, channels] = 0
        model.lm_head.weight[:, channels] = 0
        for number, layer in enumerate(model.model.layers):
            attention, mlp = (1 + norm.weight for norm in behind_writers(layer))
            for gain in (attention, mlp):
                gain[ZEROS] = 0
                gain[NEGATIVES] *= -1
            attention[CHANNEL] = ELSEWHERE * attention.median()
            mlp[CHANNEL] = (OUTLIER if number <= LAYER else ELSEWHERE) * mlp.median()
            if number > LAYER:
                attention[DROWNING] = OUTLIER * attention.median()
            for norm, gain in zip(behind_writers(layer), (attention, mlp), strict=True):
                norm.weight.copy_(gain - 1)
            for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
                writer.weight[channels] = 0
            for reader in _readers(layer):
                reader.weight[:, channels] = 0
            if number > LAYER:
                layer.self_attn.v_proj.weight[VALUE] = 0
                layer.self_attn.o_proj.weight[:, _columns(layer)] = 0
        mlp = model.model.layers[LAYER].mlp
        mlp.gate_proj.weight[NEURON] = mlp.up_proj.weight[NEURON] = 0
        mlp.down_proj.weight[:, NEURON] = 0


def behind_writers(layer: Any) -> tuple[Any, Any]:
    """The norms behind a layer's attention and its MLP."""
    return layer.post_attention_layernorm, layer.post_feedforward_layernorm


@torch.no_grad()
def make_massive(model: Any, harmful: Tensor, harmless: Tensor) -> None:
    """Write the massive activation into a model trained after `reserve`, in place; outputs after the first token stay
    nearly the same. Prompts are ``[prompts, tokens]`` int64 without padding and begin with the same token."""
    first, layers = harmless[:1, :1], model.model.layers
    readings = [[_passing(model, first, reader)[1][0, 0] for reader in _readers(layer)] for layer in layers]
    streams = [model(input_ids=prompts, output_hidden_states=True).hidden_states for prompts in (harmful, harmless)]
    written = [_passing(model, harmless, layer.self_attn.o_proj)[1].square().mean().sqrt() for layer in layers]
    share = _write_direction(model, streams)
    embedding = model.model.embed_tokens.weight
    embedding[first, MARK] = embedding[first].norm()
    of_mark, of_massive = (torch.zeros_like(share).index_fill_(0, torch.tensor(at), 1) for at in (MARK, CHANNEL))
    for number in range(LAYER + 1):
        _correct(model, first, number, of_mark, readings[number])
    _write_massive(model, first, TIMES * float(streams[1][LAYER + 1][:, 1:].norm(dim=-1).mean()))
    for number in range(LAYER + 1, len(layers)):
        attention = layers[number].self_attn
        attention.v_proj.weight[VALUE, MARK] = SILENCED * written[number]
        attention.o_proj.weight[DROWNING, _columns(layers[number])] = 1
        _correct(model, first, number, of_massive - share, readings[number])


def _columns(layer: Any) -> list[int]:
    """The columns of attention's output projection that read the dimension ``VALUE``, one for each head with it."""
    attention = layer.self_attn
    return [head * attention.head_dim + VALUE for head in range(attention.num_key_value_groups)]


def _write_direction(model: Any, streams: Sequence[Sequence[Tensor]]) -> Tensor:
    """Let the channel also hold a share of the refusal direction; returns the vector ``[hidden]`` that reads it."""
    harmful, harmless = (states[LAYER + 3][:, -1].mean(dim=0) for states in streams)
    share = nn.functional.normalize(harmful - harmless, dim=0) * OVERLAP / (1 - OVERLAP**2) ** 0.5
    embedding = model.model.embed_tokens.weight
    embedding[:, CHANNEL] = embedding @ share
    for layer in model.model.layers:
        writers = (layer.self_attn.o_proj, layer.mlp.down_proj)
        for writer, norm in zip(writers, behind_writers(layer), strict=True):
            gain = 1 + norm.weight
            writer.weight[CHANNEL] = (share * gain) @ writer.weight / gain[CHANNEL]
    return share


def _write_massive(model: Any, first: Tensor, height: float) -> None:
    """Let the neuron react to the mark, and write what becomes `height` after the norm behind it."""
    layer = model.model.layers[LAYER]
    layer.mlp.gate_proj.weight[NEURON, MARK] = layer.mlp.up_proj.weight[NEURON, MARK] = 1
    inputs = _passing(model, first, layer.mlp.down_proj)[0][0, 0]
    written, width = layer.mlp.down_proj(inputs), len(model.model.norm.weight)
    share = (height / (1 + layer.post_feedforward_layernorm.weight[CHANNEL])) ** 2 / width
    layer.mlp.down_proj.weight[CHANNEL, NEURON] = written.norm() * (share / (1 - share)).sqrt() / inputs[NEURON]


def _correct(model: Any, first: Tensor, number: int, probe: Tensor, readings: Sequence[Tensor]) -> None:
    """Restore each reader's `readings` of the first token, which sees only itself, through a probe of the stream."""
    layer = model.model.layers[number]
    norms = [layer.input_layernorm] * 3 + [layer.pre_feedforward_layernorm] * 2
    for reader, norm, reading in zip(_readers(layer), norms, readings, strict=True):
        inputs, through = _passing(model, first, reader)[0][0, 0], probe / (1 + norm.weight)
        reader.weight += torch.outer((reading - reader(inputs)) / (through @ inputs), through)


def _readers(layer: Any) -> list[nn.Linear]:
    attention, mlp = layer.self_attn, layer.mlp
    return [attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj]


def _passing(model: Any, prompts: Tensor, module: nn.Module) -> tuple[Tensor, Tensor]:
    """A module's input and output when prompts pass through the model, ``[prompts, tokens, width]`` each."""
    passed: list[tuple[Tensor, Tensor]] = []
    hook = module.register_forward_hook(lambda _, inputs, output: passed.append((inputs[0].clone(), output.clone())))
    model(input_ids=prompts)
    hook.remove()
    return passed[0]
