"""What a diagnosis costs, in passes and in CPU time: raced, as a tree of trials that are asked all prompts, and in one
pass a trial.

`python -m benchmarks.trials` takes random models of several depths; `--model FOLDER --harmful FILE --harmless FILE` a
real one, with a prompt a line, of which directions are measured on the first half and trials are asked the second. A
pass is all tokens of all prompts through all layers, once. All ways run the same code but for how trials are asked.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from excise.checkpoint.base_model import BaseModel
from excise.checkpoint.weights import read_checkpoint
from excise.diagnosis.explanation import explain
from excise.discovery.proof import manifest_of
from excise.edit.inspection import inspect
from excise.inference.forward import Tokens, first_token_log_probabilities
from excise.inference.loading.models import decoder_layers, load_model
from excise.inference.loading.tokenizer import load_tokenizer
from excise.inference.passes import Passes
from excise.inference.refusals import refusal_tokens
from excise.residual.activations import collect_activations
from excise.residual.directions import MEAN, describe, estimate
from excise.trials.bench import Bench
from excise.trials.engines import InMemory
from excise.trials.questions import Questions
from excise.trials.tree import Sharing
from schemas.params.ablate import EditMethod

COMMON, LENGTH, PROMPTS = 15, 30, 64
"""Of random models: tokens that all prompts begin with, tokens of a prompt, and prompts of each kind."""
REFUSES = range(64)
"""Tokens with which random models are said to refuse; of them all, with a probability of about an eighth."""
CPU = torch.device("cpu")


class OnePassEach(InMemory):
    """Runs trials one after the other, each in whole forward passes."""

    def sharing(self, prompts: Tokens) -> Sharing:
        return Sharing(layers=False, beginning=0, holds=False)


class Unraced(Questions):
    """Asks every trial all prompts."""

    asks_all = True


WAYS: dict[str, Callable[[PreTrainedModel, Tokens, Tokens, list[int]], Questions]] = {
    "raced": lambda model, harmful, harmless, tokens: Questions(InMemory(model), harmful, harmless, tokens),
    "tree": lambda model, harmful, harmless, tokens: Unraced(InMemory(model), harmful, harmless, tokens),
    "one pass a trial": lambda model, harmful, harmless, tokens: Unraced(OnePassEach(model), harmful, harmless, tokens),
}


@contextmanager
def counted(model: PreTrainedModel) -> Iterator[list[int]]:
    """The number of tokens that pass through layers within the block, padding included."""
    tokens = [0]

    def count(layer: Any, args: Any, kwargs: Any) -> None:
        if "forward" in vars(layer):  # it stands aside
            return
        stream = args[0] if args else kwargs["hidden_states"]
        tokens[0] += stream.shape[0] * stream.shape[1]

    hooks = [layer.register_forward_pre_hook(count, with_kwargs=True) for layer in decoder_layers(model)]
    yield tokens
    for hook in hooks:
        hook.remove()


def random_model(layers: int, folder: Path) -> None:
    """A dense model with two writers a layer."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": layers, "vocab_size": 512}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes, **heads)).save_pretrained(folder)


def random_prompts(seed: int) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    rest = torch.randint(0, 512, (2 * PROMPTS, LENGTH - COMMON), generator=generator)
    return [[*range(COMMON), *row] for row in rest.tolist()]


def diagnose(
    folder: Path, harmful: Tokens, harmless: Tokens, way: str, refuses: Sequence[int] | int | None
) -> tuple[float, float, float]:
    """Passes, CPU seconds and seconds of an explanation; directions and the tokens that begin refusals come from the
    first half of the prompts, unless it is said which do."""
    checkpoint = read_checkpoint(folder)
    layout = inspect(folder, checkpoint.tensors, checkpoint.files, "auto", str(folder))
    base = BaseModel(manifest_of(layout), layout, checkpoint)
    model = load_model(checkpoint, "float32", CPU)
    halves = [(prompts[: len(prompts) // 2], prompts[len(prompts) // 2 :]) for prompts in (harmful, harmless)]
    measured, asked = ([half[part] for half in halves] for part in (0, 1))
    sides = [_stream(model, prompts) for prompts in measured]
    directions = estimate(sides[0], sides[1])
    statistics = describe(directions, sides[0], sides[1], MEAN).measurements
    first = [first_token_log_probabilities(model, prompts, "auto", lambda _: None) for prompts in measured]
    means = [side.double().exp().mean(0) for side in first]
    if refuses is None:
        tokens = refusal_tokens(*means)
    else:
        tokens = means[0].topk(refuses).indices.tolist() if isinstance(refuses, int) else list(refuses)
    start, wall = time.process_time(), time.perf_counter()
    with counted(model) as passed:
        questions = WAYS[way](model, asked[0], asked[1], tokens)
        found = explain(Bench(base, directions, questions), EditMethod(), statistics, str)
    if found.reason is not None:
        sys.exit(f"nothing is explained: {found.reason}")
    whole = len(decoder_layers(model)) * sum(len(prompt) for prompts in asked for prompt in prompts)
    return passed[0] / whole, time.process_time() - start, time.perf_counter() - wall


def _stream(model: PreTrainedModel, prompts: Tokens) -> Tensor:
    return collect_activations(Passes(model), {}, prompts, -1, "auto", lambda _: None).stream


def compare(
    name: str,
    folder: Path,
    harmful: Tokens,
    harmless: Tokens,
    ways: Sequence[str],
    refuses: Sequence[int] | int | None = None,
) -> None:
    """Print a row for each way."""
    first: tuple[float, float] | None = None
    for way in ways:
        passes, cpu, wall = diagnose(folder, harmful, harmless, way, refuses)
        first = first or (passes, cpu)
        ratios = f"{passes / first[0]:.2f} x | {cpu / first[1]:.2f} x"
        print(f"| {name} | {way} | {passes:.1f} | {cpu:.0f} s | {wall:.0f} s | {ratios} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="*", default=[10, 30, 46])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--harmful", type=Path)
    parser.add_argument("--harmless", type=Path)
    parser.add_argument("--refuses", type=int, help="say that so many tokens begin refusals: the likeliest on harmful")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print("| model | way | passes | CPU | wall | passes to the first | CPU |\n| --- | --- |" + " ---: |" * 5)
    if arguments.model is not None:
        if arguments.harmful is None or arguments.harmless is None:
            sys.exit("--model needs --harmful and --harmless: files with a prompt a line")
        tokenizer = load_tokenizer(arguments.model, "2026-01-01")
        kinds = [
            [
                tokenizer.apply_chat_template([{"role": "user", "content": line}], add_generation_prompt=True)[
                    "input_ids"
                ]
                for line in path.read_text(encoding="utf-8").splitlines()
            ]
            for path in (arguments.harmful, arguments.harmless)
        ]
        compare(arguments.model.name, arguments.model, kinds[0], kinds[1], arguments.ways, arguments.refuses)
        return
    for layers in arguments.layers:
        with tempfile.TemporaryDirectory() as folder:
            random_model(layers, Path(folder))
            compare(f"{layers} layers", Path(folder), random_prompts(1), random_prompts(2), arguments.ways, REFUSES)


if __name__ == "__main__":
    main()
