"""A twin of a model: its config.json with small sizes, so that it is wired alike and measured in seconds."""

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from transformers import PreTrainedModel

from excise.plumbing.private.transformers import named_as, use_plain_experts

_RULES = Path(__file__).parent / "sizes.yaml"
_NOT_KEPT = {"architectures", "transformers_version", "dtype", "torch_dtype", "quantization_config", "_name_or_path"}
_FIRST_TOKEN = 90
_MOST_PARAMETERS = 1 << 27
MOST_LAYERS = 16
"""Of a twin that has to show every kind of layer."""


@cache
def _rules() -> Any:
    return YAML(typ="safe", pure=True).load(_RULES.read_text())


def filled(config: Any) -> Any:
    """The default config of a type with values for keys that its class leaves null, and yet cannot do without."""
    given = config.to_dict()
    for part in (given, *(value for key, value in given.items() if key.endswith("config") and value)):
        part |= {key: value for key, value in _rules()["needed"].items() if part.get(key, value) is None}
        for key, value in copy.deepcopy(_rules()["needed_by_type"].get(part.get("model_type"), {})).items():
            repeated = value.get("repeat") if isinstance(value, dict) else None
            if repeated:
                part[key] = (repeated * part["num_hidden_layers"])[: part["num_hidden_layers"]]
            else:
                part[key] = {**(part.get(key) or {}), **value} if isinstance(value, dict) else value
    if "vision_config" in given:  # rotary positions in three dimensions
        for part in (given, given.get("text_config") or {}):
            rope = part.get("rope_parameters") or {}
            by_kind = [each for each in rope.values() if isinstance(each, dict)]
            for each in by_kind or ([rope] if rope else []):
                each.setdefault("mrope_section", [16, 24, 24])
    given.pop("model_type", None)
    return type(config)(**given)


def twin_config(config: Any, layers: int) -> Any:
    """The config of a model with small sizes and at most so many layers."""
    text = config.get_text_config()
    small = _shrunk(config.to_dict(), layers)
    small.pop("model_type", None)
    for part in (small, small.get("text_config")):
        if part is not None:
            part.update(_rules()["exceptions"].get(text.model_type, {}))
    return named_as(config, type(config)(**small))


def _shrunk(given: Mapping[str, Any], layers: int) -> dict[str, Any]:
    left_out = {key for known, keys in _rules()["derived"].items() if known in given for key in keys}
    small: dict[str, Any] = {}
    for key, value in given.items():
        if key in _NOT_KEPT | left_out:
            continue
        if isinstance(value, Mapping):
            small[key] = _shrunk_mapping(key, value, layers)
        elif re.search(_rules()["tokens"], key):
            small[key] = _token(key, value, len(small))
        elif isinstance(value, list | tuple | str):
            small[key] = _shrunk_list(key, value, given, layers)
        elif type(value) is int and value > 0:
            small[key] = _size(key, value, given, layers)
        else:
            small[key] = value
    return small


def _shrunk_mapping(key: str, value: Mapping[str, Any], layers: int) -> dict[str, Any]:
    if key.startswith("rope_"):
        return _plain_rope(value)
    by_layer = all(str(number).isdigit() and isinstance(inner, Mapping) for number, inner in value.items())
    if by_layer:
        return {layer: _shrunk(inner, layers) for layer, inner in value.items() if int(layer) < layers}
    return _shrunk(value, layers) if key.endswith("config") else copy.deepcopy(dict(value))


def _plain_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary positions without what long contexts add, whose tables have the size of a head."""
    plain = {key: _plain_rope(value) if isinstance(value, Mapping) else value for key, value in rope.items()}
    plain = {key: value for key, value in plain.items() if not isinstance(value, list) or key == "mrope_section"}
    if "rope_type" in plain:
        plain["rope_type"] = "default"
    if "mrope_section" in plain:  # half of a head
        plain["mrope_section"] = [2, 1, 1] if plain.get("partial_rotary_factor") == 0.5 else [2, 3, 3]
    return plain


def _token(key: str, value: Any, number: int) -> Any:
    """The tokens that every model may have come first, others at the end of the vocabulary."""
    first = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if key in first:
        return first[key]
    return _FIRST_TOKEN + number % 5 if type(value) is int else None


def _shrunk_list(key: str, value: Any, given: Mapping[str, Any], layers: int) -> Any:
    counts = [given[name] for name in given if _rule(name) == "layers" and type(given[name]) is int]
    is_pattern = not isinstance(value, str) or not re.search(r"[a-z]", value)
    if len(value) in counts and is_pattern:  # one entry a layer
        return copy.deepcopy(value[:layers])
    if not isinstance(value, str) and value and all(type(each) is int for each in value):
        if re.search(r"layer|indices|idxs", key):  # numbers of layers
            return [each for each in value if each < layers]
        return [_size(key, each, given, layers) for each in value]
    return copy.deepcopy(value)


def _rule(key: str) -> int | str | None:
    return next((rule["at_most"] for rule in _rules()["sizes"] if re.search(rule["key"], key)), None)


def _size(key: str, value: int, given: Mapping[str, Any], layers: int) -> int:
    rule = _rule(key)
    if rule == "key_value_heads":
        heads = next((given[name] for name in ("num_attention_heads", "n_head", "num_heads") if name in given), None)
        return min(value, 4 if value == heads else 2)
    most = {"layers": layers, "shared_layers": layers // 2}.get(rule) if isinstance(rule, str) else rule
    return value if most is None or value <= 0 else min(value, most)


@contextmanager
def double_precision() -> Iterator[None]:
    """For the tensors that models make for themselves."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def build(config: Any, model_class: Any, seed: int = 0) -> PreTrainedModel:
    """A model of a config in float64 with random weights, gains and biases, all of whose parts can be differentiated
    twice. `model_class` is one of transformers' automatic ones. Raises `ValueError`: it would not be small."""
    use_plain_experts(config)
    # Code beside weights is never run for a twin: whoever trusts such a model declares its layout.
    make = partial(model_class.from_config, config, trust_remote_code=False)
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in make().parameters())
    if parameters > _MOST_PARAMETERS:
        raise ValueError(f"it would have {parameters:,} parameters, because some of its sizes have unknown names")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model: PreTrainedModel = make(dtype=torch.float64, attn_implementation="eager")
        except ValueError:  # some types have one implementation of attention only
            model = make(dtype=torch.float64)
    randomize(model, seed)
    return model.eval()


def randomize(model: PreTrainedModel, seed: int) -> None:
    """Give every parameter and stored buffer random values, such that no norm is alike and no bias is zero."""
    generator = torch.Generator().manual_seed(seed)
    embedding = model.get_input_embeddings()
    computed = {name for name, _ in model.named_non_persistent_buffers()}
    stored = [buffer for name, buffer in model.named_buffers() if name not in computed]
    with torch.no_grad():
        for tensor in [*model.parameters(), *stored]:
            if not tensor.is_floating_point():
                continue
            # As float32 has them too: some norms compute in it.
            random = torch.randn(tensor.shape, generator=generator, dtype=torch.float32).to(tensor.dtype)
            if tensor.ndim <= 1 or not isinstance(tensor, torch.nn.Parameter):
                is_gain = isinstance(tensor, torch.nn.Parameter) and tensor.numel() > 1
                # Gains stay away from 0, by which readers divide, and what routers add must not decide alone.
                random = tensor + (0.3 if is_gain else 0.1) * random.clamp(-2.5, 2.5)
            elif embedding is None or tensor.shape != embedding.weight.shape:
                random = random / tensor.shape[-1] ** 0.5
            tensor.copy_(random.float())
