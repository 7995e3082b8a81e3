"""`artifacts/model.json` and `artifacts/layout.json`: the base model, pinned, and the roles of its tensors."""

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from schemas.basis.document import Document, FileDigest

Dtype = Literal["float32", "bfloat16", "float16"]
WriterRole = Literal["attention", "mlp", "routed_experts", "shared_experts", "per_layer_input"]
ReaderRole = Literal["attention_inputs", "mlp_inputs", "expert_inputs", "router"]
Axes = Literal["out in", "in out", "expert out in", "expert in out", "out"]
_MODELS = ("model.", "model.language_model.", "language_model.model.", "")


class ModelManifest(Document):
    """`artifacts/model.json`: the base model, pinned. The path of a local folder is not part of it."""

    source: Literal["organism", "folder", "hub"]
    id: str | None = Field(default=None, description="organization/name on the Hub; null for other sources")
    revision: str | None = Field(default=None, description="its commit there; null for other sources")
    model_type: str = Field(description="of config.json; of its text part where the model has several")
    dtype: Dtype = Field(description="in which measurement and evaluation load it")
    layers: int = Field(description="decoder layers in use; measurements go from 0 to this number")
    hidden_size: int
    files: list[FileDigest] = Field(description="sorted by path")


class Norm(Document):
    """A norm: x / rms(x) ⊙ (offset + weight), or LayerNorm."""

    weight: str | None = Field(description="name within the layer; null for a LayerNorm without weights")
    offset: Literal[0, 1] = Field(default=0, description="1 if the norm multiplies by 1 + weight")
    kind: Literal["rms", "layer"] = "rms"
    bias: str | None = Field(default=None, description="name within the layer, only of a LayerNorm; may be absent")
    module: str | None = Field(default=None, description="its module in memory within the layer, if named otherwise")

    @property
    def in_memory(self) -> str | None:
        """The module in memory, named within the layer; None for a norm without weights."""
        return self.module if self.module is not None else self.weight and self.weight.removesuffix(".weight")

    @model_validator(mode="after")
    def _lack_weights_only_as_layer_norm(self) -> Self:
        # An RMSNorm without weights changes no direction, so no layout needs it.
        if self.weight is None and (self.kind != "layer" or self.bias is not None):
            raise ValueError("a norm without weights is a LayerNorm without a bias")
        return self


class _Tensor(Document):
    weight: str = Field(description="name within the layer; `{expert}` stands for each expert's number")
    bias: str | None = Field(default=None, description="name within the layer; may be absent from a checkpoint")
    axes: Axes = Field(default="out in", description="the order of the stored axes, which no shape decides")
    module: str | None = None
    """module in memory within the layer, if not the weight's, whose output is written or whose input is read"""

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
    """A tensor whose output is added to the residual stream, after the norms in order."""

    role: WriterRole
    norms: tuple[Norm, ...] = ()
    gate: str | None = Field(default=None, description="a reader whose one output, through a sigmoid, multiplies it")
    routed: Literal["output", "input"] = Field(default="output", description="what the router's weights multiply")
    multiplier: float = Field(default=1.0, allow_inf_nan=False, description="of its output, after the norms")
    before_norms: float = Field(default=1.0, allow_inf_nan=False, description="what multiplies it before the norms")
    multipliers: tuple[float, ...] = Field(default=(), description="the same by layer, where layers differ")

    def multiplier_in(self, layer: int) -> float:
        """What multiplies its output, after the norms, in a layer."""
        return self.multipliers[layer] if self.multipliers else self.multiplier

    @model_validator(mode="after")
    def _pass_only_through_rms_norms(self) -> Self:
        # A LayerNorm removes the mean, and its bias would itself write to the stream.
        if any(norm.kind != "rms" or norm.bias is not None for norm in self.norms):
            raise ValueError(f"{self.weight}: a writer behind a LayerNorm is not supported")
        return self


class Reader(_Tensor):
    """A tensor that reads the residual stream, through a norm if it has one."""

    role: ReaderRole
    norm: Norm | None = None
    optional: bool = Field(default=False, description="whether a layer may lack it")


class Embedding(Document):
    """A tensor that is added to the stream before the first layer: the embeddings of tokens, of positions, or the bias
    of a norm behind them."""

    weight: str = Field(description="complete name, `[rows, hidden]` or `[hidden]`")
    parameter: str | None = Field(default=None, description="complete name in memory; null for the token embeddings")
    norms: tuple[Norm, ...] = Field(default=(), description="norms behind it, by complete names")


class RouterBias(Document):
    """What a router adds to the scores of a token, `[experts]`, before it chooses the best of them."""

    weight: str = Field(description="name within the layer; may be absent from a checkpoint")
    buffer: str | None = Field(default=None, description="its name in memory within the layer, if that differs")
    selects_only: bool = Field(description="whether the weights of the chosen experts come from the scores without it")

    @property
    def in_memory(self) -> str:
        """The buffer or parameter in memory, named within the layer."""
        return self.buffer if self.buffer is not None else self.weight


class Variant(Document):
    """One form of a sublayer: all of its tensors are present, except optional ones, or none."""

    writers: tuple[Writer, ...] = ()
    readers: tuple[Reader, ...] = ()
    router_bias: RouterBias | None = None
    others: tuple[str, ...] = Field(default=(), description="other tensors, each of which may be absent")

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
    embedding_norms: tuple[Norm, ...] = Field(default=(), description="norms behind them, by complete names")
    other_embeddings: tuple[Embedding, ...] = ()
    """what else is added to the stream before the first layer"""
    heads: tuple[str, ...] = ("lm_head.weight", "language_model.lm_head.weight")
    """the output head; a checkpoint without one uses the embeddings"""
    expert_count: tuple[str, ...] = Field(default=(), description="keys of config.json that may count routed experts")
    sublayers: dict[str, tuple[Variant, ...]] = Field(description="each layer holds exactly one variant of each")
    residual_multiplier: str | None = Field(default=None, description="key of config.json that multiplies all writes")
    layer_scalar: str | None = None
    """a tensor of a layer, `[1]`, that multiplies the whole stream at the end of the layer"""
    layer_factors: tuple[float, ...] = Field(default=(), description="by layer, numbers of the model that do the same")
    others: tuple[str, ...] = Field(default=(), description="tensors of a layer outside its sublayers, such as norms")
    reads_elsewhere: bool = False
    """whether something reads the stream that no reader names; then no reader can be edited"""
    spare: tuple[str, ...] = Field(default=(), description="prefixes of unused layers, which are copied")

    @property
    def writers(self) -> tuple[Writer, ...]:
        """Of all variants of its sublayers."""
        return tuple(writer for each in self.sublayers.values() for variant in each for writer in variant.writers)

    def in_memory(self) -> Self:
        """The same tensors as named in memory, where all routed experts of a layer are one: `[experts, out, in]`."""
        sublayers = {name: tuple(map(Variant.in_memory, variants)) for name, variants in self.sublayers.items()}
        return self.model_copy(update={"sublayers": sublayers})


class ModelLayout(Document):
    """`artifacts/layout.json`: the layout of one model, which later stages read instead of YAML files."""

    model_type: str = Field(description="of config.json; of its text part where the model has several")
    layers: int = Field(description="decoder layers in use")
    hidden_size: int
    experts: int | None = Field(description="routed experts of a layer; null where no layer has any")
    residual_multiplier: float = Field(allow_inf_nan=False, description="of everything written to the stream")
    tied: bool = Field(description="whether the output head is the embeddings")
    measured: bool = Field(default=False, description="whether it was found by measurement, and declared nowhere")
    family: Layout = Field(description="with the names of this checkpoint")


class LayoutProof(Document):
    """The largest share of a small twin's stream, in float32, that lies along a random direction after an edit."""

    before: float = Field(description="without an edit")
    component: float = Field(description="after the edit of everything that writes to the stream")
    left_out: dict[str, float] = Field(description="if one of the writers is not edited, by its name within a layer")
    turned: dict[str, float] = Field(description="if one of them is edited along its other axis")
    unaccounted: float = Field(description="of what layers add to it without an edit, by what their writers add")


class MeasuredFamily(Document):
    """What measurement found of a model type that no file describes."""

    layout: Layout
    experts: int | None = Field(description="routed experts of a layer of the model; null where no layer has any")
    proof: LayoutProof


class LayoutEvidence(Document):
    """`artifacts/layout_proof.json`. Its figures differ between machines, and only the report reads them."""

    proof: LayoutProof | None = Field(description="null for a declared layout, which tests prove")


def matcher(pattern: str) -> re.Pattern[str]:
    """A regular expression for a prefix, in which `{layer}` becomes a group of digits; `match` anchors it."""
    before, _, after = pattern.partition("{layer}")
    return re.compile(rf"{re.escape(before)}(?P<layer>0|[1-9]\d*){re.escape(after)}")
