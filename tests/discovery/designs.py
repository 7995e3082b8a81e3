"""Made-up models, registered with transformers as a package of its own would do it. Their names mislead: what is called
`q_proj` and `up_proj` writes to the stream, and what is called `o_proj_*` and `down_proj` reads it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import CausalLMOutput

HIDDEN = 64


class MadeUpConfig(PreTrainedConfig):
    model_type = "made_up"

    def __init__(self, design: str = "plain", **others: Any) -> None:
        self.design = design
        sizes = {"hidden_size": HIDDEN, "intermediate_size": HIDDEN, "num_hidden_layers": 4, "vocab_size": 96}
        counts = {"num_attention_heads": 4, "num_experts": 4, "max_position_embeddings": 64, "num_groups": 4}
        for name, value in {**sizes, **counts}.items():
            setattr(self, name, others.pop(name, value))
        super().__init__(**others)


class Rms(nn.Module):
    def __init__(self, size: int, offset: int = 0) -> None:
        super().__init__()
        self.weight, self.offset = nn.Parameter(torch.ones(size)), offset

    def forward(self, x: Tensor) -> Tensor:
        return x / x.square().mean(-1, keepdim=True).sqrt() * (self.offset + self.weight)


class GroupRms(nn.Module):
    """Norms each group of channels by itself."""

    def __init__(self, size: int, groups: int) -> None:
        super().__init__()
        self.weight, self.groups = nn.Parameter(torch.ones(size)), groups

    def forward(self, x: Tensor) -> Tensor:
        parts = x.unflatten(-1, (self.groups, -1))
        return (parts / parts.square().mean(-1, keepdim=True).sqrt()).flatten(-2) * self.weight


class Turned(nn.Module):
    """Multiplies from the other side."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + (0 if self.bias is None else self.bias)


class Attention(nn.Module):
    def __init__(self, size: int, linear: Callable[..., nn.Module], bias: bool) -> None:
        super().__init__()
        self.o_proj_a, self.o_proj_b, self.o_proj_c = (linear(size, size, bias=False) for _ in range(3))
        self.q_proj = linear(size, size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = self.o_proj_a(x), self.o_proj_b(x), self.o_proj_c(x)
        scores = queries @ keys.transpose(-1, -2) / x.shape[-1] ** 0.5
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        return self.q_proj(scores.masked_fill(~mask, -1e9).softmax(-1) @ values)


class Convolution(nn.Module):
    """Mixes each token with the one before it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.down_proj, self.up_proj = nn.Linear(size, size, bias=False), nn.Linear(size, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.down_proj(x)
        return self.up_proj(torch.tanh(inner + torch.cat([torch.zeros_like(inner[:, :1]), inner[:, :-1]], dim=1)))


class Mlp(nn.Module):
    def __init__(self, size: int, inner: int, linear: Callable[..., nn.Module] = nn.Linear, bias: bool = False) -> None:
        super().__init__()
        self.down_proj, self.up_proj = linear(size, inner, bias=False), linear(inner, size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.up_proj(nn.functional.silu(self.down_proj(x)))


class TwiceNormed(Mlp):
    """Reads what a second norm makes of its input."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__(size, inner)
        self.norm = Rms(size)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(torch.tanh(x)))


class FarBranch(Mlp):
    """Adds what it reads in another way, from the 24th token on."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__(size, inner)
        self.far_proj = nn.Linear(size, inner, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        is_far = (torch.arange(x.shape[1], device=x.device) >= 24)[:, None]
        return self.up_proj(nn.functional.silu(self.down_proj(x)) + is_far * self.far_proj(torch.tanh(x)))


class Halves(Mlp):
    """Reads one half of the channels."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__(size, inner)
        self.down_proj = nn.Linear(size // 2, inner, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[..., : x.shape[-1] // 2])


class LowRank(Mlp):
    """What writes is the second of two matrices; the first is square, and called `o_proj`."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__(size, inner)
        self.o_proj = nn.Linear(inner, inner, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.up_proj(self.o_proj(nn.functional.silu(self.down_proj(x))))


class Bent(Mlp):
    """What is added is no linear function of any tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x))


class Adding(Mlp):
    """Returns the stream with what it writes."""

    def forward(self, x: Tensor, stream: Tensor | None = None) -> Tensor:
        written = super().forward(x)
        return written if stream is None else stream + written


class Decoy(Mlp):
    """Has a square matrix `o_proj` that nothing uses."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__(size, inner)
        self.o_proj = nn.Linear(size, size, bias=False)


class Gated(Mlp):
    """One number a token multiplies what it writes."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__(size, inner)
        self.gate = nn.Linear(size, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.gate(x)) * super().forward(x)


class Experts(nn.Module):
    """All experts of a layer, their weights in one of several forms."""

    def __init__(self, size: int, inner: int, count: int, form: str) -> None:
        super().__init__()
        self.form, self.count, self.inner = form, count, inner
        shapes = {
            "out in": ((count, inner, size), (count, size, inner)),
            "in out": ((count, size, inner), (count, inner, size)),
            "stacked": ((count * inner, size), (count * inner, size)),
        }
        if form == "list":
            self.each = nn.ModuleList(Mlp(size, inner) for _ in range(count))
        else:
            reads, writes = shapes[form]
            self.gate_up_proj, self.down_proj = nn.Parameter(torch.empty(reads)), nn.Parameter(torch.empty(writes))

    def forward(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        share = torch.zeros(len(x), self.count, dtype=x.dtype, device=x.device).scatter(1, index, weights)
        total = torch.zeros_like(x)
        for expert in range(self.count):
            rows = (share[:, expert] != 0).nonzero().flatten()
            if len(rows):
                total = total.index_add(0, rows, self._one(expert, x[rows]) * share[rows, expert, None])
        return total

    def _one(self, expert: int, x: Tensor) -> Tensor:
        if self.form == "list":
            return self.each[expert](x)
        if self.form == "stacked":
            part = slice(expert * self.inner, (expert + 1) * self.inner)
            return nn.functional.silu(x @ self.gate_up_proj[part].T) @ self.down_proj[part]
        reads, writes = self.gate_up_proj[expert], self.down_proj[expert]
        if self.form == "out in":
            reads, writes = reads.T, writes.T
        return nn.functional.silu(x @ reads) @ writes


class Mixture(nn.Module):
    def __init__(self, size: int, inner: int, count: int, form: str, shared: bool, scaled: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(count)) if scaled else None
        self.router = nn.Linear(size, count, bias=False)
        self.experts = Experts(size, inner, count, form)
        self.always = Mlp(size, inner) if shared else None
        if shared:
            self.register_buffer("correction", torch.zeros(count))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        scores = torch.sigmoid(self.router(rows))
        scores = scores if self.scale is None else scores * self.scale
        correction = self.get_buffer("correction") if self.always is not None else 0
        index = (scores + correction).topk(2, dim=-1).indices
        written = self.experts(rows, index, scores.gather(1, index)).view_as(x)
        return written if self.always is None else written + self.always(x)


class Block(nn.Module):
    def __init__(self, config: MadeUpConfig, number: int) -> None:
        super().__init__()
        design, size, inner = config.design, config.hidden_size, config.intermediate_size
        offset = int(design == "one_plus")
        linear = Turned if design == "turned" else nn.Linear
        bias = design == "biases"

        def norm() -> nn.Module:
            kinds: dict[str, Callable[[int], nn.Module]] = {
                "groups": lambda n: GroupRms(n, config.num_groups),
                "layer_norms": nn.LayerNorm,
                "plain_layer_norms": lambda n: nn.LayerNorm(n, elementwise_affine=False),
            }
            return kinds[design](size) if design in kinds else Rms(size, offset)

        self.design, self.number, self.layers = design, number, config.num_hidden_layers
        self.norm_a, self.norm_b = norm(), norm()
        is_convolution = design == "hybrid" and number % 2 == 1
        self.mixer = Convolution(size) if is_convolution else Attention(size, linear, bias)
        forms = {
            "experts": "out in",
            "turned_experts": "in out",
            "listed_experts": "list",
            "stacked_experts": "stacked",
        }
        special = {"adding": Adding, "low_rank": LowRank, "bent": Bent, "decoy": Decoy, "gated": Gated}
        special |= {"twice_normed": TwiceNormed, "halves": Halves, "far_branch": FarBranch}
        if design in forms or design in ("shared_expert", "scaled_scores"):
            form = forms.get(design, "out in")
            shared, scaled = design == "shared_expert", design == "scaled_scores"
            self.rest: nn.Module = Mixture(size, inner, config.num_experts, form, shared, scaled)
        elif design in special:
            self.rest = special[design](size, inner)
        else:
            self.rest = Mlp(size, inner, linear, bias)
        if design == "routed_first":
            self.first = Mixture(size, inner, config.num_experts, "out in", False, False)
            self.norm_first = norm()
        if design == "buffer_gain":
            self.register_buffer("gain", torch.ones(1, 1, size))
        behind = {"sandwich": 1, "one_plus": 1, "chain": 2, "scaled_before_norm": 1}.get(design, 0)
        self.behind_a, self.behind_b = (nn.Sequential(*(Rms(size, offset) for _ in range(behind))) for _ in range(2))
        if design == "groups_behind":
            self.behind_a = nn.Sequential(GroupRms(size, config.num_groups))
        if design == "layer_norm_behind":
            self.behind_a = nn.Sequential(nn.LayerNorm(size))
        if design == "scalar":
            self.scalar = nn.Parameter(torch.ones(1))
        if design == "held_scalar":
            self.holder = nn.ParameterDict({"scalar": nn.Parameter(torch.ones(1))})
        if design == "bare_gain":
            self.behind_gain = nn.Parameter(torch.ones(size))
        if design == "channel_gain":
            self.gain = nn.Parameter(torch.ones(size))

    def forward(self, h: Tensor, pace: Tensor | None = None) -> Tensor:
        factors = {"multiplied": 0.25, "deep": min(1.0, 4 / self.layers), "counted": 1 / (self.number + 1)}
        factor = factors.get(self.design, 1.0) if pace is None else pace
        if self.design == "post_norm":
            h = self.norm_a(h + self.mixer(h))
            return self.norm_b(h + self.rest(h))
        if self.design == "parallel":
            normed = self.norm_a(h)
            return h + self.mixer(normed) + self.rest(normed)
        if self.design == "channel_gain":
            h = h * self.gain
        if self.design == "later_parallel" and self.number >= 4:
            return h + self.mixer(self.norm_a(h)) + self.rest(self.norm_a(h))
        if self.design == "routed_first":
            h = h + self.first(self.norm_first(h))
        if self.design == "buffer_gain":
            h = h + self.gain * self.mixer(self.norm_a(h))
            return h + self.rest(self.norm_b(h))
        if self.design == "bare_gain":
            h = h + self.behind_gain * self.mixer(self.norm_a(h))
            return h + self.rest(self.norm_b(h))
        if self.design == "scaled_before_norm":
            h = h + self.behind_a(2.5 * self.mixer(self.norm_a(h)))
            return h + self.behind_b(0.5 * self.rest(self.norm_b(h)))
        h = h + factor * self.behind_a(self.mixer(self.norm_a(h)))
        if self.design == "counted":
            h = 0.9**self.number * h
        if self.design == "numbered" and self.number == 5:
            h = h + torch.tanh(self.norm_b(h))
        if self.design == "long" and h.shape[1] > 20:
            h = h + torch.tanh(self.norm_b(h))
        if self.design == "adding":
            return self.rest(self.norm_b(h), h)
        h = h + factor * self.behind_b(self.rest(self.norm_b(h)))
        if self.design == "held_scalar":
            return h * self.holder["scalar"]
        return h * self.scalar if self.design == "scalar" else h


class MadeUpForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = MadeUpConfig
    base_model_prefix = ""

    def __init__(self, config: MadeUpConfig) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.table = nn.Embedding(config.vocab_size, size)
        if config.design in ("positions", "normed_positions"):
            self.places = nn.Embedding(config.max_position_embeddings, size)
        if config.design in ("normed_embedding", "normed_positions"):
            self.table_norm = nn.LayerNorm(size)
        self.pile = nn.ModuleList(Block(config, number) for number in range(config.num_hidden_layers))
        if config.design == "last_vector":
            self.vector = nn.Parameter(torch.ones(size))
        if config.design == "rezero":
            self.pace = nn.Parameter(torch.ones(1))
        if config.design == "tail":
            self.tail = Block(config, 0)
        self.last_norm = Rms(size)
        self.head = nn.Linear(size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def get_decoder(self) -> nn.Module:
        return self

    def forward(self, input_ids: Tensor, **_others: Any) -> CausalLMOutput:
        h = self.table(input_ids)
        if self.config.design == "scaled_embedding":
            h = h * 3.0
        if hasattr(self, "places"):
            h = h + self.places(torch.arange(input_ids.shape[1], device=h.device))
        if self.config.design == "fixed_positions":
            h = h + torch.linspace(-1, 1, h.shape[1] * h.shape[2], dtype=h.dtype).view(h.shape[1:])
        if hasattr(self, "table_norm"):
            h = self.table_norm(h)
        if self.config.design == "one_token":
            h = h + (input_ids == 50).to(h.dtype)[..., None]
        for number, block in enumerate([*self.pile] * (2 if self.config.design == "looped" else 1)):
            h = block(h, getattr(self, "pace", None))
            if self.config.design == "between" and number == 4:
                h = h + torch.tanh(self.last_norm(h))
        if self.config.design == "last_vector":
            h = h + self.vector
        if hasattr(self, "tail"):
            h = self.tail(h)
        return CausalLMOutput(logits=self.head(self.last_norm(h)))


AutoConfig.register(MadeUpConfig.model_type, MadeUpConfig)
AutoModelForCausalLM.register(MadeUpConfig, MadeUpForCausalLM)
