"""A tensor layout: which tensors of a checkpoint write to the residual stream. A YAML each in `architectures/`."""

import functools
import json
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML

FOLDER = Path(__file__).parent / "architectures"

Role = Literal["attention", "mlp", "routed_experts", "shared_experts"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Writer(_Part):
    """A tensor whose output is added to the residual stream."""

    role: Role
    weight: str = Field(description="name within the layer, `[out, in]`; `{expert}` stands for each expert's number")
    bias: str | None = Field(default=None, description="name within the layer; may be absent from a checkpoint")


class Variant(_Part):
    """One form that a sublayer takes: all of its writers are there, or none."""

    writers: tuple[Writer, ...]


class Layout(_Part):
    """The tensors of a decoder layer: those that write, by sublayer, and the names of all others."""

    model_types: tuple[str, ...]
    layers: tuple[str, ...] = Field(description="prefixes of a layer's tensors, `{layer}` for its number")
    expert_count: str | None = Field(default=None, description="the key of config.json that counts routed experts")
    sublayers: dict[str, tuple[Variant, ...]] = Field(description="each layer holds exactly one variant of each")
    others: tuple[str, ...] = Field(description="every other tensor a layer may hold")


@functools.cache
def layouts() -> dict[str, Layout]:
    """Every known layout by model type.

    Raises:
        ValueError: a layout file is not one, or two files claim the same model type.
    """
    known: dict[str, Layout] = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        try:
            layout = Layout.model_validate_json(_as_json(path))
        except ValidationError as error:
            raise ValueError(f"{path.name} is not a layout: {error}") from None
        for model_type in layout.model_types:
            if model_type in known:
                raise ValueError(f"{path.name} names the model type {model_type!r}, which another layout has already")
            known[model_type] = layout
    return known


def _as_json(path: Path) -> str:
    return json.dumps(YAML(typ="safe", pure=True).load(path.read_text()))


def matcher(pattern: str) -> re.Pattern[str]:
    """An anchored expression for a name with `{layer}` and `{expert}`, which become groups of digits."""
    parts = re.split(r"\{(layer|expert)\}", pattern)
    return re.compile(
        "".join(re.escape(part) if place % 2 == 0 else rf"(?P<{part}>0|[1-9]\d*)" for place, part in enumerate(parts))
    )
