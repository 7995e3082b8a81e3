"""What a diagnosis costs: trials that advance as one tree against one pass a trial, in passes and in CPU time.

`python -m benchmarks.trials` takes random models of several depths; `--model FOLDER --harmful FILE --harmless FILE` a
real one, with a prompt a line, of which directions are measured on the first half and trials are asked the second. A
pass is all tokens of all prompts through all layers, once. Both ways run the same code but for how trials are asked.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from excise.checkpoint.base_model import BaseModel
from excise.checkpoint.weights import read_checkpoint
from excise.diagnosis.explanation import explain
from excise.discovery.proof import manifest_of
from excise.edit.inspection import inspect
from excise.edit.planning.projectors import Directions
from excise.inference.forward import Tokens
from excise.inference.loading.models import decoder_layers, load_model
from excise.inference.loading.tokenizer import load_tokenizer
from excise.inference.passes import Passes
from excise.residual.activations import collect_activations
from excise.trials.bench import Bench
from excise.trials.changes import Trial
from excise.trials.refusal import Outcome, Questions, log_odds
from schemas.directions import MeasurementStatistics
from schemas.params.ablate import EditMethod

COMMON, LENGTH, PROMPTS = 15, 30, 64
"""Of random models: tokens that all prompts begin with, tokens of a prompt, and prompts of each kind."""
CPU = torch.device("cpu")


class OnePassEach(Questions):
    """Asks trials one after the other, each in whole forward passes."""

    def ask_all(self, trials: Sequence[Trial]) -> list[Outcome]:
        return [self.ask(trial.watch(self.model)) for trial in trials]

    def ask_all_harmful(self, trials: Sequence[Trial]) -> list[torch.Tensor]:
        return [log_odds(self._answers(self.harmful, trial.watch(self.model)), self.tokens) for trial in trials]


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


def diagnose(folder: Path, harmful: Tokens, harmless: Tokens, kind: type[Questions]) -> tuple[float, float, float]:
    """Passes, CPU seconds and seconds of an explanation; directions come from the first half of the prompts."""
    checkpoint = read_checkpoint(folder)
    layout = inspect(folder, checkpoint.tensors, checkpoint.files, "auto", str(folder))
    base = BaseModel(manifest_of(layout), layout, checkpoint)
    model = load_model(checkpoint, "float32", CPU)
    halves = [(prompts[: len(prompts) // 2], prompts[len(prompts) // 2 :]) for prompts in (harmful, harmless)]
    means = [_means(model, measured) for measured, _ in halves]
    difference = (means[0] - means[1]).double()
    norms = difference.norm(dim=1)
    reasons = tuple("nothing" if norm == 0 else None for norm in norms.tolist())
    directions = Directions(difference / norms.clamp_min(1e-12)[:, None], means[1].double(), reasons)
    unknown = {name: None for name in MeasurementStatistics.model_fields if name not in ("measurement", "warnings")}
    statistics = [
        MeasurementStatistics.model_validate(
            {**unknown, "measurement": number, "norm": norm, "reason": reasons[number], "warnings": []}
        )
        for number, norm in enumerate(norms.tolist())
    ]
    asked = [kept for _, kept in halves]
    start, wall = time.process_time(), time.perf_counter()
    with counted(model) as tokens:
        questions = kind(model, asked[0], asked[1])
        explain(Bench(base, directions, questions), EditMethod(), statistics, str, lambda _: None)
    whole = len(decoder_layers(model)) * sum(len(prompt) for prompts in asked for prompt in prompts)
    return tokens[0] / whole, time.process_time() - start, time.perf_counter() - wall


def _means(model: PreTrainedModel, prompts: Tokens) -> torch.Tensor:
    return collect_activations(Passes(model), {}, prompts, -1, "auto", lambda _: None).stream.mean(0)


def compare(name: str, folder: Path, harmful: Tokens, harmless: Tokens, only_tree: bool) -> None:
    """Print one row."""
    passes, cpu, wall = diagnose(folder, harmful, harmless, Questions)
    row = f"| {name} | {passes:.1f} | {cpu:.0f} s | {wall:.0f} s |"
    if not only_tree:
        each, cpu_each, wall_each = diagnose(folder, harmful, harmless, OnePassEach)
        row += f" {each:.0f} | {cpu_each:.0f} s | {wall_each:.0f} s | {each / passes:.1f} x | {cpu_each / cpu:.1f} x |"
    print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="*", default=[10, 30, 46])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--harmful", type=Path)
    parser.add_argument("--harmless", type=Path)
    parser.add_argument("--only-tree", action="store_true", help="without one pass a trial, which takes long")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print("| model | passes | CPU | wall | one pass a trial | CPU | wall | passes | CPU |\n" + "| --- " * 9 + "|")
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
        compare(arguments.model.name, arguments.model, kinds[0], kinds[1], arguments.only_tree)
        return
    for layers in arguments.layers:
        with tempfile.TemporaryDirectory() as folder:
            random_model(layers, Path(folder))
            compare(f"{layers} layers", Path(folder), random_prompts(1), random_prompts(2), arguments.only_tree)


if __name__ == "__main__":
    main()
