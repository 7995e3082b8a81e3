"""How fast activations are taken, against generating a token with hidden states: `python -m benchmarks.measure`.

Other tools call `generate(max_new_tokens=1, output_hidden_states=True)` and keep the last token of each. Both ways run
in processes of their own on a random Llama, with the same prompts and batch size, by turns. Prints prompts a second
and what memory each added to the loaded model.
"""

import argparse
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from excise.inference.passes import Passes
from excise.residual.activations import collect_activations

LAYERS, HIDDEN, VOCABULARY = 12, 768, 32_000


def make_model() -> LlamaForCausalLM:
    """A random model of about 130 M parameters."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=2048,
        num_hidden_layers=LAYERS,
        num_attention_heads=12,
        pad_token_id=0,
        eos_token_id=None,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def make_prompts(count: int) -> list[list[int]]:
    """Prompts of 20 to 200 tokens."""
    numbers = random.Random(0)
    return [[numbers.randrange(1, VOCABULARY) for _ in range(numbers.randint(20, 200))] for _ in range(count)]


@torch.inference_mode()
def by_generating(model: Any, prompts: list[list[int]], batch_size: int) -> torch.Tensor:
    """As other tools do: one generated token, all hidden states, left padding."""
    taken = []
    for first in range(0, len(prompts), batch_size):
        batch = prompts[first : first + batch_size]
        width = max(map(len, batch))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in batch])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch])
        made = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=1,
            do_sample=False,
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
        taken.append(torch.stack([states[:, -1] for states in made.hidden_states[0]], dim=1).clone())
    return torch.cat(taken)


def memory(name: str) -> float:
    """A line of this process's memory, in GiB: `VmRSS` now, `VmHWM` at its most."""
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) / 2**20


def run(way: str, count: int, batch_size: int) -> None:
    """One way in this process: prints prompts a second and GiB beyond the loaded model."""
    model, prompts = make_model(), make_prompts(count)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    loaded = memory("VmRSS")
    began = time.monotonic()
    if way == "generate":
        by_generating(model, prompts, batch_size)
    else:
        collect_activations(Passes(model), {}, prompts, -1, batch_size, lambda _: None)
    print(count / (time.monotonic() - began), memory("VmHWM") - loaded)


def main() -> None:
    """Run by turns, and print a table in Markdown."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--prompts", type=int, default=128)
    arguments.add_argument("--batch-size", type=int, default=32)
    arguments.add_argument("--pairs", type=int, default=3)
    chosen = arguments.parse_args()
    rows: dict[str, list[tuple[float, float]]] = {"activations": [], "generate": []}
    for _ in range(chosen.pairs):
        for way, found in rows.items():
            command = [sys.executable, "-m", "benchmarks.measure", "--run", way, str(chosen.prompts)]
            done = subprocess.run([*command, str(chosen.batch_size)], check=True, capture_output=True, text=True)
            speed, extra = map(float, done.stdout.split())
            found.append((speed, extra))
    print(f"{chosen.prompts} prompts, batches of {chosen.batch_size}, {os.cpu_count()} CPUs, {platform.machine()}\n")
    print("| | prompts/s | GiB beyond the model |\n| --- | ---: | ---: |")
    medians = {}
    for way, found in rows.items():
        medians[way] = [statistics.median(column) for column in zip(*found, strict=True)]
        print(f"| {way} | {medians[way][0]:.1f} | {medians[way][1]:.2f} |")
    faster, share = (a / b for a, b in zip(medians["activations"], medians["generate"], strict=True))
    print(f"\nMedians of {chosen.pairs}: {faster:.2f} times as fast, with {share:.2f} of the memory.")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
