"""What large models learn and an organism's few steps do not: a massive activation of the first token (Sun et al. 2024,
"Massive Activations in Large Language Models"), on which attention relies. It is built into channels of the stream that
training leaves alone. An early MLP writes it through an outlier gain; as in real models, the norm that reads the stream
divides by it whatever else the first token holds, so that attention takes none of that. Without it attention does, and
a second outlier gain drowns every other token in it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

CHANNEL, OUTLIER, ELSEWHERE = 17, 100.0, 10.0
"""The massive activation's channel, and how many times the median gain is the one there behind MLPs up to the one that
writes it, and behind all other writers."""
DROWNING = 18
"""The channel of the outlier gain behind the attention of later layers."""
MARK = 0
"""The channel in which the first token's embedding differs from all others. The gain behind writers is 0 there."""
ZEROS, NEGATIVES = range(4), range(4, 10)
"""Channels whose gain behind writers is 0, and those whose gain is negative, as real models have some."""
LAYER, NEURON = 1, 0
"""Where the massive activation is written: one neuron of this layer's MLP, which nothing else uses."""
VALUE = 0
"""The dimension of values, in later layers, in which the first token holds what attention is not to take."""
TIMES = 9.0
"""How many times as long as other tokens' the first token's stream is then, on average."""
OVERLAP = 0.36
"""Cosine of the refusal direction with the massive activation's channel."""
SILENCED = 10.0
"""What the first token's value would be without the massive activation, in root mean squares of attention's output."""


def reserve(model: Any) -> None:
    """Make gains behind writers as uneven as a real model's, and what the massive activation needs unused; in place.
    What is 0 on both sides of a product has no gradient: training leaves it so."""
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
    """The norms behind a layer's attention and behind its MLP."""
    return layer.post_attention_layernorm, layer.post_feedforward_layernorm


@torch.no_grad()
def make_massive(model: Any, harmful: Tensor, harmless: Tensor) -> None:
    """Write the massive activation and have later layers read it; in place. Behind the first token the model says what
    it said before, but for the little that the channel's share of the refusal direction adds to what norms divide by.

    Args:
        model: trained, with what `reserve` left alone.
        harmful, harmless: prompts, ``[prompts, tokens]`` int64 without padding, that begin with the same token.
    """
    first, layers = harmless[:1, :1], model.model.layers
    wanted = _readings(model, first)
    streams = [model(input_ids=prompts, output_hidden_states=True).hidden_states for prompts in (harmful, harmless)]
    written = [_outputs(model, harmless, layer.self_attn.o_proj).square().mean().sqrt() for layer in layers]
    share = _write_direction(model, streams)
    embedding = model.model.embed_tokens.weight
    embedding[first, MARK] = embedding[first].norm()
    of_mark, of_massive = (torch.zeros_like(share).index_fill_(0, torch.tensor(at), 1) for at in (MARK, CHANNEL))
    for number in range(LAYER + 1):
        _correct(model, first, number, of_mark, wanted)
    _write_massive(model, first, TIMES * float(streams[1][LAYER + 1][:, 1:].norm(dim=-1).mean()))
    for number in range(LAYER + 1, len(layers)):
        attention = layers[number].self_attn
        attention.v_proj.weight[VALUE, MARK] = SILENCED * written[number]
        attention.o_proj.weight[DROWNING, _columns(layers[number])] = 1
        _correct(model, first, number, of_massive - share, wanted)


def _columns(layer: Any) -> list[int]:
    """What attention's output projection reads of the dimension ``VALUE``: one column a head that uses it."""
    attention = layer.self_attn
    return [head * attention.head_dim + VALUE for head in range(attention.num_key_value_groups)]


def _write_direction(model: Any, streams: Sequence[Sequence[Tensor]]) -> Tensor:
    """Have whatever the stream holds along the refusal direction show in the massive activation's channel too, and
    return what of the stream gives that, ``[hidden]``."""
    harmful, harmless = (found[LAYER + 3][:, -1].mean(dim=0) for found in streams)
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
    """Have the neuron answer to the mark, and write what the norm behind it makes this high."""
    layer = model.model.layers[LAYER]
    layer.mlp.gate_proj.weight[NEURON, MARK] = layer.mlp.up_proj.weight[NEURON, MARK] = 1
    inputs = _inputs(model, first, layer.mlp.down_proj)
    written, width = layer.mlp.down_proj(inputs), len(model.model.norm.weight)
    share = (height / (1 + layer.post_feedforward_layernorm.weight[CHANNEL])) ** 2 / width
    layer.mlp.down_proj.weight[CHANNEL, NEURON] = written.norm() * (share / (1 - share)).sqrt() / inputs[NEURON]


def _correct(model: Any, first: Tensor, number: int, probe: Tensor, wanted: Sequence[Sequence[Tensor]]) -> None:
    """Have a layer read of the first token what it read before, by what a probe, ``[hidden]``, finds in the stream."""
    layer = model.model.layers[number]
    norms = [layer.input_layernorm] * 3 + [layer.pre_feedforward_layernorm] * 2
    for reader, norm, before in zip(_readers(layer), norms, wanted[number], strict=True):
        inputs, through = _inputs(model, first, reader), probe / (1 + norm.weight)
        reader.weight += torch.outer((before - reader(inputs)) / (through @ inputs), through)


def _readings(model: Any, first: Tensor) -> list[list[Tensor]]:
    """What each reader of each layer makes of the first token, which sees itself alone: the same in every prompt."""
    return [[_outputs(model, first, reader)[0, 0] for reader in _readers(layer)] for layer in model.model.layers]


def _readers(layer: Any) -> list[nn.Linear]:
    attention, mlp = layer.self_attn, layer.mlp
    return [attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj]


def _inputs(model: Any, first: Tensor, module: nn.Module) -> Tensor:
    """What a module is given of the first token."""
    return _passing(model, first, module)[0][0, 0]


def _outputs(model: Any, prompts: Tensor, module: nn.Module) -> Tensor:
    return _passing(model, prompts, module)[1]


def _passing(model: Any, prompts: Tensor, module: nn.Module) -> tuple[Tensor, Tensor]:
    """What a module is given of prompts and what it makes of it, ``[prompts, tokens, width]`` each."""
    seen: list[tuple[Tensor, Tensor]] = []
    hook = module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].clone(), output.clone())))
    model(input_ids=prompts)
    hook.remove()
    return seen[0]
