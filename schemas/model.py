"""`artifacts/model.json` and `artifacts/layout.json`: the base model, pinned, and which of its tensors do what."""

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from schemas.basis.document import Document, FileDigest

Dtype = Literal["float32", "bfloat16", "float16"]
WriterRole = Literal["attention", "mlp", "routed_experts", "shared_experts", "per_layer_input"]
Axes = Literal["out in", "in out", "expert out in", "expert in out"]
_MODELS = ("model.", "model.language_model.", "language_model.model.", "")


class ModelManifest(Document):
    """`artifacts/model.json`: the base model, pinned. Where the folder lies is no part of what it is."""

    source: Literal["organism", "folder", "hub"]
    id: str | None = Field(default=None, description="organization/name on the Hub; null for other sources")
    revision: str | None = Field(default=None, description="its commit there; null for other sources")
    model_type: str = Field(description="of config.json; of its text part where the model has several")
    dtype: Dtype = Field(description="what measuring and evaluation load it in")
    layers: int = Field(description="decoder layers in use; measurements go from 0 to this number")
    hidden_size: int
    files: list[FileDigest] = Field(description="sorted by path")


class Norm(Document):
    """A norm: x / rms(x) ⊙ (offset + weight), or LayerNorm."""

    weight: str = Field(description="name within the layer")
    offset: Literal[0, 1] = Field(default=0, description="1 where the stored weight is what is added to one")
    kind: Literal["rms", "layer"] = "rms"
    bias: str | None = Field(default=None, description="name within the layer, LayerNorm alone; may be absent")


class _Tensor(Document):
    weight: str = Field(description="name within the layer; `{expert}` stands for each expert's number")
    bias: str | None = Field(default=None, description="name within the layer; may be absent from a checkpoint")
    axes: Axes = Field(default="out in", description="what the stored axes are; shape never decides")
    module: str | None = None
    """the module in memory that holds it, named within the layer, where that is not the weight's name: what a writer's
    module returns is added to the stream, and what a reader's is given is read from it"""

    @property
    def in_memory(self) -> str:
        """The module in memory, named within the layer."""
        return self.module if self.module is not None else self.weight.removesuffix(".weight")

    def merged(self, name: str) -> Self:
        """The same tensor under its name in memory, where all experts of a layer are one tensor, called `name`."""
        if self.axes.startswith("expert"):
            return self
        weight, bias, axes = f"{self.in_memory}.weight", f"{self.in_memory}.bias", self.axes
        if "{expert}" in self.weight:
            weight, bias, axes = f"{self.in_memory}.{name}", f"{self.in_memory}.{name}_bias", "expert out in"
        return self.model_copy(update={"weight": weight, "bias": self.bias and bias, "axes": axes})


class Writer(_Tensor):
    """A tensor whose output is added to the residual stream, after the norms in their order."""

    role: WriterRole
    norms: tuple[Norm, ...] = ()
    gate: str | None = None
    """a reader whose one output, through a sigmoid, multiplies what is written"""
    routed: Literal["output", "input"] = "output"
    """of routed experts: what the router's weights multiply, what they write or read"""

    @model_validator(mode="after")
    def _pass_through_rms_norms_alone(self) -> Self:
        # A LayerNorm takes the mean away, and its bias would itself write to the stream.
        if any(norm.kind != "rms" or norm.bias is not None for norm in self.norms):
            raise ValueError(f"{self.weight}: a writer behind a LayerNorm is not provided for")
        return self


class Reader(_Tensor):
    """A tensor that reads the residual stream, through a norm where it has one."""

    role: Literal["attention_inputs", "mlp_inputs", "expert_inputs", "router"]
    norm: Norm | None = None
    optional: bool = Field(default=False, description="whether a layer may do without it")


class RouterBias(Document):
    """What a router adds to the scores of a token, `[experts]`, before it chooses the best of them."""

    weight: str = Field(description="name within the layer; may be absent from a checkpoint")
    buffer: str | None = None
    """the buffer or parameter in memory, where that goes by another name within the layer"""
    selects_only: bool
    """whether the weights of the experts that were chosen are of the scores without it"""

    @property
    def in_memory(self) -> str:
        """The buffer or parameter in memory, named within the layer."""
        return self.buffer if self.buffer is not None else self.weight


class Variant(Document):
    """One form that a sublayer takes: all of its tensors are there, but for the optional ones, or none."""

    writers: tuple[Writer, ...] = ()
    readers: tuple[Reader, ...] = ()
    router_bias: RouterBias | None = None
    others: tuple[str, ...] = Field(default=(), description="its further tensors, each of which may be absent")

    def in_memory(self) -> Self:
        """See `Layout.in_memory`."""
        bias = self.router_bias
        return self.model_copy(
            update={
                "writers": tuple(writer.merged("down_proj") for writer in self.writers),
                # An expert's gate and up projections are one tensor, and so one reader.
                "readers": tuple(dict.fromkeys(reader.merged("gate_up_proj") for reader in self.readers)),
                "router_bias": bias and bias.model_copy(update={"weight": bias.in_memory}),
            }
        )


class Layout(Document):
    """The tensors of a decoder layer by sublayer. A sublayer with an empty variant may be absent."""

    model_types: tuple[str, ...]
    layers: tuple[str, ...] = tuple(f"{model}layers.{{layer}}." for model in _MODELS)
    """prefixes of a layer's tensors: of a text model, of one within a multimodal one, of a bare decoder"""
    embeddings: tuple[str, ...] = tuple(f"{model}embed_tokens.weight" for model in _MODELS)
    """the token embeddings, `[vocabulary, hidden]`"""
    heads: tuple[str, ...] = ("lm_head.weight", "language_model.lm_head.weight")
    """the output head; where a checkpoint has none, it is the embeddings"""
    expert_count: tuple[str, ...] = ()
    """the key of config.json that counts routed experts, under each name that it goes by"""
    sublayers: dict[str, tuple[Variant, ...]] = Field(description="each layer holds exactly one variant of each")
    residual_multiplier: str | None = None
    """the key of config.json that multiplies whatever is written to the stream"""
    layer_scalar: str | None = None
    """a tensor of a layer, `[1]`, that multiplies the whole stream at the layer's end"""
    others: tuple[str, ...] = Field(default=(), description="a layer's tensors outside its sublayers, such as norms")
    spare: tuple[str, ...] = Field(default=(), description="prefixes of further layers that are not in use; copied")

    def in_memory(self) -> Self:
        """The same tensors under the names that transformers gives them in memory, as a checkpoint may have them that
        was saved from there: all routed experts of a layer in one tensor, `[experts, out, in]`."""
        sublayers = {name: tuple(map(Variant.in_memory, variants)) for name, variants in self.sublayers.items()}
        return self.model_copy(update={"sublayers": sublayers})


class ModelLayout(Document):
    """`artifacts/layout.json`: the layout of one model, as prepare found it. Later stages read it, and no YAML."""

    model_type: str = Field(description="of config.json; of its text part where the model has several")
    layers: int = Field(description="decoder layers in use")
    hidden_size: int
    experts: int | None = Field(description="routed experts of a layer; null where no layer has any")
    residual_multiplier: float = Field(allow_inf_nan=False, description="of whatever is written to the stream")
    tied: bool = Field(description="whether the output head is the embeddings")
    family: Layout = Field(description="under the names that this checkpoint has")


def matcher(pattern: str) -> re.Pattern[str]:
    """An expression for a prefix with `{layer}`, which becomes a group of digits; `match` anchors it."""
    before, _, after = pattern.partition("{layer}")
    return re.compile(rf"{re.escape(before)}(?P<layer>0|[1-9]\d*){re.escape(after)}")
