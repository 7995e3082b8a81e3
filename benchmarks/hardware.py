"""What each stage needs for known models: `python -m benchmarks.hardware`.

Writes the tables of docs/hardware.md and the heads of recipes/*.yaml. Parameters are counted on the models as
transformers builds them, on the meta device; nothing is fetched. What memory a stage takes is a formula that
tests/recipes/test_hardware.py checks against measured peaks; times are an estimate from the speeds below.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig

from excise.inference.loading.models import auto_class, decoder, decoder_layers
from excise.plumbing.machine import GIB, Sizes, Work, batch_bytes, resident_bytes, streamed_bytes

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/hardware.md"
BATCH = 64

CONFIGS: dict[str, dict[str, Any]] = {
    "olmo-3-7b-instruct": {
        "model_type": "olmo3",
        "vocab_size": 100278,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "llama-3.1-8b-instruct": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "qwen3-8b": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "ministral-3-8b-instruct-2512": {
        "model_type": "mistral3",
        "text_config": {
            "model_type": "ministral3",
            "vocab_size": 131072,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 34,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
        "vision_config": {
            "model_type": "pixtral",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 1540,
            "patch_size": 14,
        },
    },
    "qwen3.5-9b": {
        "model_type": "qwen3_5",
        "text_config": {
            "vocab_size": 248320,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 256,
        },
    },
    "gemma-3-12b-it": {
        "model_type": "gemma3",
        "text_config": {
            "vocab_size": 262208,
            "hidden_size": 3840,
            "intermediate_size": 15360,
            "num_hidden_layers": 48,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 256,
        },
        "vision_config": {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 896,
            "patch_size": 14,
        },
    },
    "gemma-4-12b-it": {
        "model_type": "gemma4_unified",
        "text_config": {
            "vocab_size": 262144,
            "hidden_size": 3840,
            "intermediate_size": 15360,
            "num_hidden_layers": 48,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "num_global_key_value_heads": 1,
            "head_dim": 256,
            "global_head_dim": 512,
            "attention_k_eq_v": True,
            "hidden_size_per_layer_input": 0,
        },
    },
    "gpt-oss-20b-bf16": {
        "model_type": "gpt_oss",
        "vocab_size": 201088,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 24,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
    },
    "qwen3-30b-a3b-instruct-2507": {
        "model_type": "qwen3_moe",
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
    },
    "glm-4.5-air": {
        "model_type": "glm4_moe",
        "vocab_size": 151552,
        "hidden_size": 4096,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "num_hidden_layers": 46,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 1,
        "attention_bias": True,
    },
}
"""What the publishers' config.json says of sizes, from the smallest model to the largest."""

SPARE = {"glm-4.5-air": 7_257_000_000}
"""Bytes of files that are not in use: GLM's layer of multi-token prediction, with embeddings and a head of its own."""

PROGRAM = GIB // 2
"""Python with torch and transformers, before there is a model."""
ANSWERS = 256
"""Tokens of an answer at most, in the tasks of the recipes."""
QUESTIONS = 1300
"""Tokens of a question with its examples, in the longest of them (gsm8k, five examples)."""
JUDGED_AT_ONCE = 96
"""Tokens of each sample whose logits are in memory at once, with their log-softmax: a multiple choice's."""
BATCHES_ASKED = (100 + 250 + 1319) / BATCH
"""Batches that generate answers: JailbreakBench, XSTest, gsm8k."""
HELD_OUT = 100

PROMPTS = Work.of([(BATCH, 64)] * 10 + [(26, 64)])
"""What the recipes measure: 333 prompts of each kind, of about 64 tokens, chat template included."""

FLOPS = {"16 CPU cores": 1e12, "one H100": 2e14}
READ = 1.5e9
"""Bytes a second from a solid-state disk."""
WRITE = 1e9
"""Bytes a second that an edit writes; benchmarks/RESULTS.md has 0.5 to 1.2 GB/s on 2 cores."""
BANDWIDTH = 1.5e12
"""Bytes a second of weights that generation reads on an H100, half of what its data sheet says."""
LAYER_SECONDS = 5e-4
"""The least that a layer takes for a token, which is spent on starting kernels."""


@dataclass(frozen=True)
class Counted:
    """What a model has, and what a stage therefore needs in bytes."""

    parameters: int
    active: int
    """Of them, those that a token passes through."""
    weights: int
    largest_part: int
    """Of what is loaded at a time where it is streamed: a layer, or what is outside of layers."""
    vocabulary: int
    cache: int
    """Bytes that attention keeps of a token."""
    sizes: Sizes

    def measure(self, work: Work = PROMPTS) -> int:
        """With all weights in memory."""
        return PROGRAM + resident_bytes(self.weights, self.sizes, work)

    def streamed(self, work: Work = PROMPTS) -> int:
        """With one layer in memory."""
        return PROGRAM + streamed_bytes(self.largest_part, self.sizes, work)

    def ablate(self) -> int:
        """One tensor's rows at a time, and the directions."""
        return PROGRAM + 3 * 8 * (self.sizes.layers + 1) * self.sizes.hidden

    def diagnose(self, work: Work = PROMPTS) -> int:
        """The model, and first-token probabilities of the held-out prompts in float64, several at a time."""
        return (
            PROGRAM
            + self.weights
            + batch_bytes(self.sizes, work)
            + 2 * HELD_OUT * self.vocabulary * 4
            + 4 * HELD_OUT * self.vocabulary * 8
        )

    def answer(self, work: Work = PROMPTS, tokens: int = QUESTIONS + ANSWERS) -> int:
        """The model, what attention keeps of a batch, and what is predicted for it."""
        predicted = BATCH * JUDGED_AT_ONCE * self.vocabulary * 2 * self.sizes.bytes
        return PROGRAM + self.weights + batch_bytes(self.sizes, work) + BATCH * tokens * self.cache + predicted


def count(config: PretrainedConfig, dtype: torch.dtype = torch.bfloat16) -> Counted:
    """Count a model in a dtype."""
    with torch.device("meta"):
        model = auto_class(config).from_config(config, dtype=dtype)
    text = config.get_text_config().to_dict()
    experts = text.get("num_local_experts") or text.get("n_routed_experts") or text.get("num_experts") or 0
    routed = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if ".experts." in name and parameter.shape[0] == experts
    )
    unused = routed - routed * text["num_experts_per_tok"] // experts if experts else 0
    parameters = sum(parameter.numel() for parameter in model.parameters())
    layers = [sum(tensor.nbytes for tensor in layer.parameters()) for layer in decoder_layers(model)]
    frame = sum(tensor.nbytes for tensor in decoder(model).parameters()) - sum(layers)
    head = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    sizes = Sizes.of(text, dtype.itemsize)
    return Counted(
        parameters=parameters,
        active=parameters - unused,
        weights=sum(tensor.nbytes for tensor in model.parameters()),
        largest_part=max(frame, *layers),
        vocabulary=text["vocab_size"],
        cache=2 * sizes.layers * text["num_key_value_heads"] * head * sizes.bytes,
        sizes=sizes,
    )


def table_of_memory(counted: Mapping[str, Counted]) -> str:
    """In Markdown, a line a model."""
    lines = [
        "| recipe | parameters (active), B | files, GB | measure | streamed | ablate | diagnose | answer, GiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, model in counted.items():
        numbers = (model.measure(), model.streamed(), model.ablate(), model.diagnose(), model.answer())
        lines.append(
            f"| `{name}` | {model.parameters / 1e9:.1f} ({model.active / 1e9:.1f}) | {files(name, model) / 1e9:.0f} | "
            + " | ".join(f"{number / GIB:.1f}" for number in numbers)
            + " |"
        )
    return "\n".join(lines)


def table_of_times(counted: Mapping[str, Counted]) -> str:
    """In Markdown, a line a model."""
    lines = [
        "| recipe | digests | measure, 16 CPU cores | measure, one H100 | ablate | answer both, H100s |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, model in counted.items():
        size = files(name, model)
        computing = [max(2 * model.active * PROMPTS.tokens / speed, size / READ) for speed in FLOPS.values()]
        times = [size / READ, *computing, size / WRITE, 2 * answer_seconds(model)]
        lines.append(f"| `{name}` | " + " | ".join(map(duration, times)) + " |")
    return "\n".join(lines)


def answer_seconds(model: Counted) -> float:
    """What generating all answers takes once, on as many GPUs as hold the model, one after another."""
    step = max(model.weights / BANDWIDTH, model.sizes.layers * LAYER_SECONDS)
    return BATCHES_ASKED * ANSWERS * step


def files(name: str, model: Counted) -> int:
    """Bytes of the checkpoint."""
    return model.weights + SPARE.get(name, 0)


def duration(seconds: float) -> str:
    """To one figure or two: nobody measured it."""
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{max(2, round(seconds / 60))} min"


def needs(name: str, model: Counted) -> str:
    """The lines in the head of a recipe."""
    size = files(name, model) / 1e9
    whole, streamed, diagnose, answer = (
        f"{number / GIB:.0f} GiB" for number in (model.measure(), model.streamed(), model.diagnose(), model.answer())
    )
    lines = (
        f"Needs, by docs/hardware.md: {size:.0f} GB of disk for the model and as much for the edited one. Memory:",
        f"measure {whole}, or {streamed} layer by layer; ablate 1 GiB; diagnose {diagnose}; answer {answer} with",
        f"64 samples at once, less with fewer. About {duration(2 * answer_seconds(model))} of H100s, to answer.",
    )
    return "".join(f"# {line}\n" for line in lines)


def written_into(text: str, name: str, content: str, comment: tuple[str, str] = ("<!-- ", " -->")) -> str:
    """The text with what stands between the marks of that name replaced."""
    begin, end = (f"{comment[0]}{name}:{side}{comment[1]}\n" for side in ("begin", "end"))
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return before + begin + content + end + after


def written() -> dict[Path, str]:
    """Every file with what is counted in it."""
    counted = {name: count(AutoConfig.for_model(**config)) for name, config in CONFIGS.items()}
    page = written_into(PAGE.read_text(), "memory", table_of_memory(counted) + "\n")
    made = {PAGE: written_into(page, "times", table_of_times(counted) + "\n")}
    for name, model in counted.items():
        recipe = ROOT / f"recipes/{name}.yaml"
        made[recipe] = written_into(recipe.read_text(), "needs", needs(name, model), ("# ", ""))
    return made


def main() -> None:
    """Write them."""
    for path, text in written().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
